from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from btinet.config import DatasetSettings, SplitPolicy
from btinet.datasets.duplicates import DUPLICATES, clusters
from btinet.datasets.prepare import prepare
from btinet.datasets.prepared import open_prepared
from btinet.datasets.splits import SPLITS, assign, load_split, moved
from btinet.errors import InputError
from btinet.storage import Storage

NO_PAIRS = pa.table([[], [], [], []], DUPLICATES)


def samples_table(
    counts: Sequence[int], groups: Sequence[str | None] | None = None, splits: Sequence[str | None] | None = None
) -> pa.Table:
    """What assign needs of a dataset with so many samples a class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    nothing = [None] * len(labels)
    return pa.table(
        {
            "sample_id": [f"class {label} ({number:04d})" for number, label in enumerate(labels)],
            "group_id": pa.array(groups or nothing, pa.string()),
            "label": pa.array(labels, pa.int8()),
            "split": pa.array(splits or nothing, pa.string()),
        }
    )


def pairs_table(samples: pa.Table, *clusters: Sequence[int]) -> pa.Table:
    """Duplicates: each cluster is a chain of rows."""
    ids = samples["sample_id"].to_pylist()
    edges = [sorted((ids[a], ids[b])) for cluster in clusters for a, b in pairwise(cluster)]
    return pa.table([*map(list, zip(*edges, strict=True)), [0.9] * len(edges), [False] * len(edges)], DUPLICATES)


def counts_of(samples: pa.Table, splits: np.ndarray) -> dict[str, list[int]]:
    """Samples of each class in each split."""
    labels = samples["label"].to_numpy()
    return {name: np.bincount(labels[splits == name], minlength=labels.max() + 1).tolist() for name in SPLITS}


def torn(splits: np.ndarray, units: Sequence[Hashable]) -> int:
    """How many units are in more than one split."""
    found = defaultdict(set)
    for unit, split in zip(units, splits, strict=True):
        found[unit].add(split)
    return sum(len(names) > 1 for names in found.values())


def test_busi_counts() -> None:
    samples = samples_table((437, 210, 133))
    for seed in (42, 123, 456):
        counts = counts_of(samples, assign(samples, NO_PAIRS, "paper", seed))
        assert counts == {"train": [305, 147, 93], "val": [66, 32, 20], "test": [66, 31, 20]}


def lesions(seed: int = 0) -> tuple[pa.Table, list[str]]:
    """1,500 lesions of seven classes as uneven as HAM10000's, one to five photographs of each."""
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.choice(7, 1500, p=[0.11, 0.66, 0.05, 0.04, 0.11, 0.015, 0.015]))
    photographs = rng.choice([1, 2, 3, 5], 1500, p=[0.7, 0.2, 0.07, 0.03])
    groups = [f"lesion {number}" for number in np.repeat(np.arange(1500), photographs)]
    return samples_table(np.bincount(np.repeat(labels, photographs), minlength=7).tolist(), groups), groups


def duplicated(seed: int = 0) -> pa.Table:
    """Pairs, a triple and a larger cluster among lesions(), within and across classes."""
    samples, _ = lesions()
    rows = np.random.default_rng(seed).permutation(len(samples))
    return pairs_table(samples, *rows[:300].reshape(-1, 2).tolist(), rows[300:303].tolist(), rows[303:315].tolist())


@pytest.mark.parametrize("policy", ["paper", "clean", "paper-n1503"])
@pytest.mark.parametrize("seed", [42, 123, 456])
def test_shares_are_kept_and_nothing_is_left_out(policy: SplitPolicy, seed: int) -> None:
    samples, _ = lesions()
    splits = assign(samples, duplicated(), policy, seed)
    assert set(splits) == set(SPLITS)
    total = np.bincount(samples["label"].to_numpy())
    counts = counts_of(samples, splits)
    np.testing.assert_array_equal(np.sum(list(counts.values()), axis=0), total)
    for name, share in (("train", 0.70), ("val", 0.15), ("test", 0.15)):
        assert sum(counts[name]) == pytest.approx(share * len(samples), rel=0.06)
        np.testing.assert_allclose(counts[name], share * total, rtol=0.15, atol=8)


@pytest.mark.parametrize("seed", [42, 123, 456])
def test_no_group_is_torn_but_by_the_leaky_policy(seed: int) -> None:
    samples, groups = lesions()
    pairs = duplicated()
    assert torn(assign(samples, pairs, "paper", seed), groups) == 0
    assert torn(assign(samples, pairs, "clean", seed), groups) == 0
    assert torn(assign(samples, pairs, "paper-n1503", seed), groups) > 100


@pytest.mark.parametrize("seed", [42, 123, 456])
def test_clean_tears_no_duplicates_and_moves_few(seed: int) -> None:
    samples, groups = lesions()
    pairs = duplicated()
    units = clusters(samples["sample_id"].to_pylist(), pairs, groups)
    paper, clean = (assign(samples, pairs, policy, seed) for policy in ("paper", "clean"))
    crossing = torn(paper, units)
    assert crossing > 30
    assert torn(clean, units) == 0
    assert moved(samples, pairs, seed) == (paper != clean).sum() < 8 * crossing
    assert (assign(samples, NO_PAIRS, "clean", seed) == assign(samples, NO_PAIRS, "paper", seed)).all()


def test_a_torn_cluster_goes_where_most_of_it_is() -> None:
    samples = samples_table((100, 100, 100))
    paper = assign(samples, NO_PAIRS, "paper", 42)
    train, val, test = (np.flatnonzero(paper == name) for name in ("train", "val", "test"))
    pairs = pairs_table(samples, [train[0], train[1], test[0]], [test[1], test[2], train[2]], [val[0], train[3]])
    clean = assign(samples, pairs, "clean", 42)
    assert clean[[train[0], train[1], test[0]]].tolist() == ["train"] * 3
    assert clean[[test[1], test[2], train[2]]].tolist() == ["test"] * 3
    assert clean[[val[0], train[3]]].tolist() == ["val"] * 2  # a tie: the smaller split keeps its sample
    assert counts_of(samples, clean) == counts_of(samples, paper)


def test_the_authors_test_set_is_kept() -> None:
    splits = ["test" if number % 6 == 0 else None for number in range(600)]
    samples = samples_table((150, 150, 150, 150), splits=splits)
    for seed in (42, 123):
        drawn = assign(samples, NO_PAIRS, "paper", seed)
        assert [name == "test" for name in drawn] == [name == "test" for name in splits]
        assert counts_of(samples, drawn)["val"] == pytest.approx([18.75] * 4, abs=1)


def test_clean_may_move_samples_out_of_the_authors_test_set() -> None:
    splits = ["test" if number % 6 == 0 else None for number in range(600)]
    samples = samples_table((300, 300), splits=splits)
    paper = assign(samples, NO_PAIRS, "paper", 42)
    train = np.flatnonzero(paper == "train")
    pairs = pairs_table(samples, [0, train[0], train[1]])
    assert assign(samples, pairs, "clean", 42)[0] == "train"
    assert (assign(samples, pairs, "paper", 42) == paper).all()


@pytest.mark.parametrize("policy", ["paper", "clean", "paper-n1503", "manifest"])
def test_seeded_and_independent_of_row_order(policy: SplitPolicy) -> None:
    samples, _ = lesions()
    if policy == "manifest":
        given = assign(samples, NO_PAIRS, "paper", 1)
        samples = samples.set_column(3, "split", pa.array(given.tolist()))

    def assignment(table: pa.Table, pairs: pa.Table, seed: int) -> dict[str, str]:
        splits = assign(table, pairs, policy, seed).tolist()
        return dict(zip(table["sample_id"].to_pylist(), splits, strict=True))

    pairs = duplicated()
    first = assignment(samples, pairs, 42)
    assert assignment(samples, pairs, 42) == first
    order = np.random.default_rng(3).permutation(len(samples))
    assert assignment(samples.take(order), pairs.take(np.arange(len(pairs))[::-1]), 42) == first
    assert (assignment(samples, pairs, 43) == first) == (policy == "manifest")


def test_the_manifests_own_split() -> None:
    given = (["train"] * 7 + ["val"] * 2 + ["test"]) * 9
    samples = samples_table((30, 60), splits=given)
    assert assign(samples, NO_PAIRS, "manifest", 42).tolist() == given


@pytest.mark.parametrize(
    ("groups", "splits", "message"),
    [
        (None, None, "90 of 90 samples have no split of their own"),
        (None, ["train", "test", None] * 30, "30 of 90 samples"),
        (None, ["train", "test", "train"] * 30, "no sample is in val"),
        (["a", "a", "b"] * 30, ["train", "val", "test"] * 30, "1 group.* more than one split, first a"),
    ],
)
def test_a_manifest_split_that_cannot_be_used(groups: list[str] | None, splits: list[str] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        assign(samples_table((45, 45), groups, splits), NO_PAIRS, "manifest", 42)


def test_the_leaky_policy_is_for_datasets_with_groups() -> None:
    with pytest.raises(InputError, match="there are none: use 'paper'"):
        assign(samples_table((50, 50)), NO_PAIRS, "paper-n1503", 42)


@pytest.mark.parametrize("counts", [(40, 30, 2), (40, 30, 1), (4, 2, 2)])
def test_too_small_a_class_is_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=f"too few samples.*class 2: {counts[2]}.*raise max_samples"):
        assign(samples_table(counts), NO_PAIRS, "paper", 42)


@pytest.mark.parametrize(("counts", "videos"), [((40, 20), [(40, 60)]), ((20, 20), [(0, 20), (20, 40)])])
def test_clean_refuses_to_leave_a_class_out(counts: tuple[int, int], videos: list[tuple[int, int]]) -> None:
    """The frames of a video go into one split, and there are no others of its class."""
    samples = samples_table(counts)
    pairs = pairs_table(samples, *(list(range(*video)) for video in videos))
    assign(samples, pairs, "paper", 42)
    with pytest.raises(InputError, match=f"too few .*clusters of duplicates.*class 1: {counts[1]}"):
        assign(samples, pairs, "clean", 42)


def test_the_table_is_written_once_and_read_after(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    manifest = prepare(DatasetSettings(name="phantom", max_samples=24), 32, store).manifest
    prepared = open_prepared(store, "phantom", manifest.hash)
    first = load_split(store, prepared, "paper", 42)
    file = tmp_path / "datasets" / "phantom" / manifest.hash / "splits" / "paper-s42.parquet"
    written = file.stat().st_mtime_ns
    assert load_split(store, prepared, "paper", 42).table.equals(first.table)
    assert file.stat().st_mtime_ns == written
    assert first.table.equals(
        pa.table(
            {
                "sample_id": prepared.samples["sample_id"],
                "split": assign(prepared.samples, NO_PAIRS, "paper", 42).tolist(),
            }
        )
    )

    (store / "datasets/phantom" / manifest.hash / "splits/paper-s42.parquet").write_table(first.table.slice(1))
    with pytest.raises(InputError, match="remove the file"):
        load_split(store, prepared, "paper", 42)

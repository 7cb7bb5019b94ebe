from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa
import pytest

from btinet.config import DatasetSettings
from btinet.datasets.prepare import prepare
from btinet.datasets.prepared import PreparedDataset, open_prepared
from btinet.datasets.splits import SPLITS, Split, load_split, make_split
from btinet.errors import InputError
from btinet.storage import Storage

CLASSES = ("benign", "malignant", "normal")


def dataset(counts: tuple[int, int, int], groups: bool = False, shuffle: int | None = None) -> PreparedDataset:
    """What make_split needs of a prepared dataset with so many samples a class."""
    labels = np.repeat(np.arange(3), counts)
    ids = np.array([f"{CLASSES[label]} ({number})" for number, label in enumerate(labels)])
    order = np.arange(len(ids)) if shuffle is None else np.random.default_rng(shuffle).permutation(len(ids))
    samples = pa.table(
        {
            "sample_id": ids[order].tolist(),
            "group_id": pa.array(["g"] * len(ids) if groups else [None] * len(ids), pa.string()),
        }
    )

    class Fake(SimpleNamespace):
        def __len__(self) -> int:
            return len(labels)

    manifest = SimpleNamespace(name="fake", class_counts=dict(zip(CLASSES, counts, strict=True)))
    return cast(PreparedDataset, Fake(samples=samples, labels=labels[order], manifest=manifest))


def test_busi_counts() -> None:
    prepared = dataset((437, 210, 133))
    for seed in (42, 123, 456):
        split = Split("paper", seed, make_split(prepared, "paper", seed))
        counts = {name: np.bincount(prepared.labels[split.rows(name)]).tolist() for name in SPLITS}
        assert counts == {"train": [305, 147, 93], "val": [66, 32, 20], "test": [66, 31, 20]}


def test_every_row_is_in_exactly_one_split() -> None:
    prepared = dataset((50, 30, 20))
    split = Split("paper", 1, make_split(prepared, "paper", 1))
    rows = np.concatenate([split.rows(name) for name in SPLITS])
    np.testing.assert_array_equal(np.sort(rows), np.arange(100))
    assert split.id == "paper-s1"
    assert split.table["sample_id"].equals(prepared.samples["sample_id"])
    with pytest.raises(ValueError, match="no split 'valid'"):
        split.rows("valid")


def test_seeded_and_independent_of_row_order() -> None:
    def assignment(prepared: PreparedDataset, seed: int) -> dict[str, str]:
        table = make_split(prepared, "paper", seed)
        return dict(zip(table["sample_id"].to_pylist(), table["split"].to_pylist(), strict=True))

    first = assignment(dataset((50, 30, 20)), 42)
    assert assignment(dataset((50, 30, 20)), 42) == first
    assert assignment(dataset((50, 30, 20), shuffle=3), 42) == first
    assert assignment(dataset((50, 30, 20)), 43) != first


@pytest.mark.parametrize("counts", [(40, 30, 2), (40, 30, 1), (4, 2, 2)])
def test_too_small_a_class_is_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=f"too few samples.*normal: {counts[2]}.*raise max_samples"):
        make_split(dataset(counts), "paper", 42)


def test_groups_are_not_torn_apart() -> None:
    with pytest.raises(InputError, match="would tear groups apart"):
        make_split(dataset((50, 30, 20), groups=True), "paper", 42)


def test_unknown_policy() -> None:
    with pytest.raises(InputError, match="'papre' is unknown; choose from paper"):
        make_split(dataset((50, 30, 20)), "papre", 42)


def test_the_table_is_written_once_and_read_after(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    manifest = prepare(DatasetSettings(name="phantom", max_samples=24), 32, store).manifest
    prepared = open_prepared(store, "phantom", manifest.hash)
    first = load_split(store, prepared, "paper", 42)
    file = tmp_path / "datasets" / "phantom" / manifest.hash / "splits" / "paper-s42.parquet"
    written = file.stat().st_mtime_ns
    assert load_split(store, prepared, "paper", 42).table.equals(first.table)
    assert file.stat().st_mtime_ns == written
    assert first.table.equals(make_split(prepared, "paper", 42))

    (store / "datasets/phantom" / manifest.hash / "splits/paper-s42.parquet").write_table(first.table.slice(1))
    with pytest.raises(InputError, match="remove the file"):
        load_split(store, prepared, "paper", 42)

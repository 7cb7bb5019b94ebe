"""Train, validation and test: a table that is a pure function of (prepared hash, policy, seed)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from btinet.config import SplitPolicy
from btinet.datasets.duplicates import clusters
from btinet.datasets.prepared import PreparedDataset, store_folder
from btinet.errors import InputError
from btinet.storage import Storage

SPLITS = ("train", "val", "test")

TEST_SHARE = 0.15
VAL_SHARE = 0.15

Assignment = NDArray[np.str_]
"""The split of each sample, row-aligned with the samples."""


@dataclass(frozen=True)
class Split:
    """Which rows of a prepared dataset train, validate and test."""

    policy: SplitPolicy
    seed: int
    table: pa.Table
    """sample_id, split; row-aligned with the prepared dataset."""

    @property
    def id(self) -> str:
        return split_id(self.policy, self.seed)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Row numbers of ``train``, ``val`` or ``test``, ascending."""
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; choose from {', '.join(SPLITS)}")
        return np.flatnonzero(self.table["split"].to_numpy() == split)


def split_id(policy: SplitPolicy, seed: int) -> str:
    return f"{policy}-s{seed}"


def load_split(storage_root: Storage, prepared: PreparedDataset, policy: SplitPolicy, seed: int) -> Split:
    """The split, from ``splits/`` beside the prepared dataset; made and written there the first time.

    Raises:
        InputError: see :func:`assign`; or the stored table belongs to other samples.
    """
    folder = store_folder(storage_root, prepared.manifest.name, prepared.manifest.hash)
    file = folder / "splits" / f"{split_id(policy, seed)}.parquet"
    if not file.exists():
        try:
            splits = assign(prepared.samples, prepared.duplicates, policy, seed)
        except InputError as error:
            raise InputError(f"dataset {prepared.manifest.name!r}: {error}") from error
        file.write_table(pa.table({"sample_id": prepared.samples["sample_id"], "split": splits.tolist()}))
    table = file.read_table()
    if not table["sample_id"].equals(prepared.samples["sample_id"]):
        raise InputError(f"{file}: does not list the samples of {folder}: remove the file, it will be made again")
    return Split(policy, seed, table)


def assign(samples: pa.Table, pairs: pa.Table, policy: SplitPolicy, seed: int) -> Assignment:
    """Assign every sample to a split; the order of the rows does not matter.

    Policies:
        paper: 70/15/15, stratified by class; groups stay together; where the authors have a test set, it is
            kept, and 85/15 of the rest train and validate. BUSI's 780 images give 545/118/117 with 97 lesions
            among the 117, the counts behind the paper's tables.
        clean: ``paper``, and then clusters of duplicates (joined with their groups) that it tears apart are
            put together, as few samples as possible moving. Other samples move the other way, so that every
            split keeps its share of every class.
        paper-n1503: by image, whatever its group: the split behind the paper's HAM10000 numbers (its test set
            has 1,503 images). It leaks: a lesion's photographs are in training and test.
        manifest: the split that the dataset's authors (or your manifest) give each sample.

    Args:
        samples: columns sample_id, group_id, label, split (the authors' own, null where they made none).
        pairs: duplicates among them (duplicates.DUPLICATES); only ``clean`` looks at it.
        policy: see above.
        seed: of the random draw; ``manifest`` ignores it.

    Returns:
        [N] of train, val and test.

    Raises:
        InputError: the policy does not fit these samples; the message says which does.
    """
    order = np.argsort(samples["sample_id"].to_numpy())
    samples = samples.take(order)
    splits = np.empty(len(samples), dtype="<U5")
    splits[order] = _assign_sorted(samples, pairs, policy, seed)
    return splits


def _assign_sorted(samples: pa.Table, pairs: pa.Table, policy: SplitPolicy, seed: int) -> Assignment:
    """:func:`assign` for samples in the order of their ids."""
    ids, groups = samples["sample_id"].to_pylist(), samples["group_id"].to_pylist()
    labels = samples["label"].to_numpy().astype(np.int64)
    if policy == "manifest":
        return _manifest(samples["split"].to_pylist(), groups)
    if policy == "paper-n1503":
        if not any(groups):
            raise InputError("split policy 'paper-n1503' ignores groups, and there are none: use 'paper'")
        splits = _draw(labels, np.arange(len(labels)), np.zeros(len(labels), bool), seed)
    else:
        units = clusters(ids, pairs.slice(length=0), groups)  # a unit is a group, or an image without one
        splits = _draw(labels, units, np.array(samples["split"].to_pylist()) == "test", seed)
        if policy == "clean":
            splits = _repair(splits, labels, clusters(ids, pairs, groups), seed)
    if any(set(labels[splits == name]) != set(labels) for name in SPLITS):
        raise _too_few(labels)
    return splits


def moved(samples: pa.Table, pairs: pa.Table, seed: int) -> int:
    """How many samples ``clean`` puts in another split than ``paper`` does."""
    return int((assign(samples, pairs, "clean", seed) != assign(samples, pairs, "paper", seed)).sum())


def torn(samples: pa.Table, pairs: pa.Table, splits: Sequence[str]) -> tuple[int | None, int]:
    """How many groups (None where none are known) and how many clusters of duplicates are in several splits."""
    groups = samples["group_id"].to_pylist()
    in_group = [(group, split) for group, split in zip(groups, splits, strict=True) if group is not None]
    units = clusters(samples["sample_id"].to_pylist(), pairs).tolist()
    return _count_torn(in_group) if in_group else None, _count_torn(zip(units, splits, strict=True))


def _count_torn(units: Iterable[tuple[Hashable, str]]) -> int:
    found = defaultdict(set)
    for unit, split in units:
        found[unit].add(split)
    return sum(len(names) > 1 for names in found.values())


def _manifest(given: list[str | None], groups: list[str | None]) -> Assignment:
    if None in given:
        raise InputError(
            f"split policy 'manifest': {given.count(None)} of {len(given)} samples have no split of their own: fill "
            "the manifest's split column with train, val and test, or use policy 'paper'"
        )
    if missing := [name for name in SPLITS if name not in given]:
        raise InputError(f"split policy 'manifest': no sample is in {' or '.join(missing)}: mend the split column")
    found = defaultdict(set)
    for group, split in zip(groups, given, strict=True):
        if group is not None:
            found[group].add(split)
    if torn := sorted(group for group, splits in found.items() if len(splits) > 1):
        raise InputError(
            f"split policy 'manifest': {len(torn)} group(s) are in more than one split, first {torn[0]}: put each "
            "group in one, or use policy 'paper'"
        )
    return np.array(given)


def _draw(labels: NDArray[np.int64], units: NDArray[np.int64], is_test: NDArray[np.bool_], seed: int) -> Assignment:
    """Draw the test set, unless there is one, and then from the rest the validation set, by whole units.

    Units are stratified by class; a unit of several classes counts as its last. Shares are rounded up.
    """
    last_sample = np.unique(units[::-1], return_index=True)
    unit_label = dict(zip(last_sample[0], labels[::-1][last_sample[1]], strict=True))
    test_units = np.unique(units[is_test])
    rest = np.setdiff1d(np.unique(units), test_units)
    try:
        if not test_units.size:
            rest, test_units = _part(rest, unit_label, TEST_SHARE, seed)
            _, val_units = _part(rest, unit_label, VAL_SHARE / (1 - TEST_SHARE), seed)
        else:
            _, val_units = _part(rest, unit_label, VAL_SHARE, seed)
    except ValueError:  # scikit-learn could not stratify
        raise _too_few(labels) from None
    splits = np.full(len(labels), "train", dtype="<U5")
    splits[np.isin(units, val_units)] = "val"
    splits[np.isin(units, test_units)] = "test"
    return splits


def _part(
    units: NDArray[np.int64], unit_label: dict[int, int], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part units, stratified, into the rest and a random ``share``."""
    from sklearn.model_selection import train_test_split  # a second, which each process of a run would spend

    stratify = [unit_label[unit] for unit in units]
    rest, drawn = train_test_split(units, test_size=share, random_state=seed, stratify=stratify)
    return rest, drawn


def _repair(splits: Assignment, labels: NDArray[np.int64], units: NDArray[np.int64], seed: int) -> Assignment:
    """Put every unit that is torn apart into one split, and let units of one class make up for it.

    A torn unit goes where most of it is; between equals to the split held out, which is the smaller one.
    """
    target = Counter(zip(splits, labels, strict=True))
    splits = splits.copy()
    members = defaultdict(list)
    for row, unit in enumerate(units.tolist()):
        members[unit].append(row)
    mended, intact = [], []
    for rows in members.values():
        counts = Counter(splits[rows])
        if len(counts) > 1:
            splits[rows] = max(("test", "val", "train"), key=lambda name: counts[name])
            mended.append(rows)
        else:
            intact.append(rows)

    rng = np.random.default_rng(seed)
    # what was torn first: it has samples that move in any case
    movable = [kind[number] for kind in (mended, intact) for number in rng.permutation(len(kind))]
    for held_out in ("test", "val"):
        for label in np.unique(labels):
            missing = target[held_out, label] - np.count_nonzero((splits == held_out) & (labels == label))
            source, sink = ("train", held_out) if missing > 0 else (held_out, "train")
            for rows in movable:
                if len(rows) <= abs(missing) and all(splits[rows] == source) and all(labels[rows] == label):
                    splits[rows] = sink
                    missing -= int(np.sign(missing)) * len(rows)
    return splits


def _too_few(labels: NDArray[np.int64]) -> InputError:
    counts = ", ".join(f"class {label}: {count}" for label, count in sorted(Counter(labels.tolist()).items()))
    return InputError(
        f"too few samples, groups or clusters of duplicates for every class to be in train, val and test ({counts}): "
        "raise max_samples or add images"
    )

"""Train, validation and test: a table that is a pure function of (prepared hash, policy, seed)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from btinet.datasets.prepared import PreparedDataset, store_folder
from btinet.errors import InputError
from btinet.storage import Storage

SPLITS = ("train", "val", "test")
POLICIES = ("paper",)
"""``paper``: 70/15/15 by image, stratified by class."""

TEST_SHARE = 0.15
VAL_SHARE = 0.15


@dataclass(frozen=True)
class Split:
    """Which rows of a prepared dataset train, validate and test."""

    policy: str
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


def split_id(policy: str, seed: int) -> str:
    return f"{policy}-s{seed}"


def load_split(storage_root: Storage, prepared: PreparedDataset, policy: str, seed: int) -> Split:
    """The split, from ``splits/`` beside the prepared dataset; made and written there the first time.

    Raises:
        InputError: see :func:`make_split`; or the stored table belongs to other samples.
    """
    folder = store_folder(storage_root, prepared.manifest.name, prepared.manifest.hash)
    file = folder / "splits" / f"{split_id(policy, seed)}.parquet"
    if not file.exists():
        file.write_table(make_split(prepared, policy, seed))
    table = file.read_table()
    if not table["sample_id"].equals(prepared.samples["sample_id"]):
        raise InputError(f"{file}: does not list the samples of {folder}: remove the file, it will be made again")
    return Split(policy, seed, table)


def make_split(prepared: PreparedDataset, policy: str, seed: int) -> pa.Table:
    """Assign every sample to a split.

    The test set is drawn first and then, from the rest, the validation set, both rounded up. BUSI's 780
    images give 545/118/117 with 97 lesions among the 117, the counts behind the paper's tables.

    Returns:
        Columns sample_id, split; row-aligned with ``prepared``.

    Raises:
        InputError: unknown policy; samples have groups, which this policy would tear apart; or a class has
            too few samples to be in every split.
    """
    if policy not in POLICIES:
        raise InputError(f"split policy {policy!r} is unknown; choose from {', '.join(POLICIES)}")
    name = prepared.manifest.name
    if prepared.samples["group_id"].null_count < len(prepared):
        raise InputError(f"dataset {name!r}: policy {policy!r} splits by image and would tear groups apart")
    # by id, so that the order of the rows does not matter
    by_id = np.argsort(prepared.samples["sample_id"].to_numpy())
    try:
        rest, test = _draw(by_id, prepared.labels, TEST_SHARE, seed)
        train, val = _draw(rest, prepared.labels, VAL_SHARE / (1 - TEST_SHARE), seed)
        complete = all(set(prepared.labels[rows]) == set(prepared.labels) for rows in (train, val, test))
    except ValueError:  # scikit-learn could not stratify
        complete = False
    if not complete:
        counts = ", ".join(f"{key}: {count}" for key, count in prepared.manifest.class_counts.items())
        raise InputError(
            f"dataset {name!r}: too few samples for every class to be in train, val and test ({counts}): "
            "raise max_samples or add images"
        )
    splits = np.full(len(prepared), "train", dtype="<U5")
    splits[val] = "val"
    splits[test] = "test"
    return pa.table({"sample_id": prepared.samples["sample_id"], "split": pa.array(splits.tolist(), pa.string())})


def _draw(
    rows: NDArray[np.int64], labels: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part ``rows``, stratified, into the rest and a random ``share``."""
    rest, drawn = train_test_split(rows, test_size=share, random_state=seed, stratify=labels[rows])
    return rest, drawn

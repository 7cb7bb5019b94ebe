"""Batches of a prepared split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from btinet.ranks import Ranks
from btinet.training import data
from btinet.training.data import SplitData
from btinet.training.tasks import Batch
from tests.training.micro import COUNTS, Bench

ONE = Ranks()


def ranks(rank: int, size: int) -> Ranks:
    made = Ranks()
    made.rank, made.size = rank, size
    return made


@pytest.fixture
def train(micro: Callable[..., Bench]) -> SplitData:
    return micro().data("train")


def rows(batches: list[Batch]) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_sizes(micro: Callable[..., Bench], split: str) -> None:
    assert len(micro().data(split)) == COUNTS[split]


def test_a_batch_is_what_the_prepared_dataset_holds(train: SplitData) -> None:
    positions = np.array([5, 0, 27])
    batch = train.batch(positions)
    wanted = train.rows[positions]
    assert batch.rows.tolist() == wanted.tolist()
    images = train.prepared.images(wanted)  # [3, S, S, 3]
    assert batch.images.shape == (3, 3, 32, 32)
    assert batch.images.dtype == torch.float32
    np.testing.assert_array_equal(batch.images.numpy(), images.transpose(0, 3, 1, 2) / np.float32(255))
    assert batch.images.max() <= 1
    assert batch.images.max() > 0.5  # neither 0..255 nor divided twice
    assert batch.images.min() >= 0
    assert batch.masks.shape == (3, 1, 32, 32)
    np.testing.assert_array_equal(batch.masks[:, 0].numpy(), train.prepared.masks(wanted))
    assert batch.labels.tolist() == train.prepared.labels[wanted].tolist()
    assert batch.labels.dtype == torch.int64
    assert train.sample_ids(wanted) == [f"phantom-{row:06d}" for row in wanted]


def test_images_lie_in_memory_as_channels_last(train: SplitData) -> None:
    assert train.batch(np.arange(4)).images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [4, 7, 8, 28])
def test_shuffled_gives_each_sample_at_most_once(train: SplitData, size: int) -> None:
    batches = rows(list(train.shuffled(size, [7, 1, 1], ONE)))
    assert [len(batch) for batch in batches] == [size] * (28 // size)
    assert len(batches) == train.steps(size)
    seen = [row for batch in batches for row in batch]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(train.rows.tolist())


def test_order_follows_from_its_seed(train: SplitData) -> None:
    def order(*seed: int) -> list[list[int]]:
        return rows(list(train.shuffled(7, list(seed), ONE)))

    first = order(7, 1, 1)
    assert order(7, 1, 1) == first
    others = [order(7, 1, 2), order(7, 2, 1), order(8, 1, 1)]  # epoch, stage, seed
    assert all(other != first for other in others)
    assert sum(first, []) != sorted(sum(first, []))  # noqa: RUF017


def test_left_out_samples_change_between_epochs(train: SplitData) -> None:
    """28 samples, 24 of them in three batches of 8."""
    everything = set(train.rows.tolist())
    left = [everything - set(sum(rows(list(train.shuffled(8, [7, 1, epoch], ONE))), [])) for epoch in (1, 2)]  # noqa: RUF017
    assert [len(one) for one in left] == [4, 4]
    assert left[0] != left[1]


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_share_every_batch(train: SplitData, size: int) -> None:
    whole = rows(list(train.shuffled(8, [7, 1, 1], ONE)))
    parts = [rows(list(train.shuffled(8, [7, 1, 1], ranks(rank, size)))) for rank in range(size)]
    assert all(len(batch) == 8 // size for part in parts for batch in part)
    assert [sum(shares, []) for shares in zip(*parts, strict=True)] == whole  # noqa: RUF017


def test_ordered_gives_all_once_in_order(train: SplitData) -> None:
    batches = rows(list(train.ordered(8, ONE)))
    assert [len(batch) for batch in batches] == [8, 8, 8, 4]
    assert sum(batches, []) == sorted(train.rows.tolist())  # noqa: RUF017


def test_ranks_are_dealt_whole_ordered_batches(train: SplitData) -> None:
    """The gate targets depend on a batch's composition (notes B13)."""
    whole = rows(list(train.ordered(8, ONE)))
    assert rows(list(train.ordered(8, ranks(0, 3)))) == [whole[0], whole[3]]
    assert rows(list(train.ordered(8, ranks(1, 3)))) == [whole[1]]
    assert rows(list(train.ordered(8, ranks(4, 5)))) == []


def test_resident_or_read_by_the_batch(micro: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    bench = micro()
    resident = bench.data("train")
    monkeypatch.setattr(data, "RESIDENT_BYTES", 28 * 32 * 32 * 4 - 1)
    mapped = bench.data("train")
    monkeypatch.setattr(data, "RESIDENT_BYTES", 28 * 32 * 32 * 4)
    assert bench.data("train")._resident is not None
    assert resident._resident is not None
    assert mapped._resident is None
    pairs = list(zip(resident.shuffled(7, [7, 1, 1], ONE), mapped.shuffled(7, [7, 1, 1], ONE), strict=True))
    assert len(pairs) == 4
    for one, other in pairs:
        assert one.rows.tolist() == other.rows.tolist()
        for name in ("images", "masks", "labels"):
            assert torch.equal(getattr(one, name), getattr(other, name))
            assert getattr(one, name).stride() == getattr(other, name).stride()

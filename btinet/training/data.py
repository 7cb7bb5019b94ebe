"""Batches from a prepared dataset: held as uint8 on the device, or read by the batch when it does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from btinet.datasets.prepared import PreparedDataset
from btinet.ranks import Ranks
from btinet.training.tasks import Batch

RESIDENT_BYTES = 4 * 2**30
"""A split of at most this size is held on the device; a larger one is read from the memory-mapped files."""


class SplitData:
    """The rows of one split, as batches of float images and masks on a device."""

    def __init__(self, prepared: PreparedDataset, rows: NDArray[np.int64], device: torch.device) -> None:
        self.prepared = prepared
        self.rows = rows
        self.device = device
        self.labels = torch.from_numpy(prepared.labels[rows]).to(device)
        self.lesions = int(np.count_nonzero(prepared.samples["has_mask"].to_numpy()[rows]))
        """How many of the samples have any pixel marked."""
        is_resident = len(rows) * prepared.manifest.image_size**2 * 4 <= RESIDENT_BYTES
        self._resident = self._read(rows) if is_resident else None

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, positions: NDArray[np.int64]) -> Batch:
        """The samples at these positions of the split."""
        index = self._on_device(positions)
        if self._resident is not None:
            images, masks = (pixels[index] for pixels in self._resident)
        else:
            images, masks = self._read(self.rows[positions])
        return Batch(
            images=images.permute(0, 3, 1, 2).float() / 255,  # NHWC memory: channels_last without a copy
            masks=masks[:, None].float(),
            labels=self.labels[index],
            rows=self.rows[positions],
        )

    def _read(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images and masks of these rows of the dataset, on the device."""
        images, masks = self.prepared.images(rows), self.prepared.masks(rows)
        return self._on_device(images), self._on_device(masks)

    def _on_device(self, values: NDArray[Any]) -> Tensor:
        """A copy, which does not wait for what the device has still to do."""
        return torch.from_numpy(values).to(self.device, non_blocking=True)

    def ordered(self, batch_size: int, ranks: Ranks) -> Iterator[Batch]:
        """All samples in fixed batches, dealt out over the ranks by whole batches."""
        starts = range(0, len(self), batch_size)
        for start in list(starts)[ranks.rank :: ranks.size]:
            yield self.batch(np.arange(start, min(start + batch_size, len(self))))

    def shuffled(self, batch_size: int, order_seed: list[int], ranks: Ranks) -> Iterator[Batch]:
        """One epoch in an order that follows from ``order_seed``; each rank gets its share of every batch.

        Samples that do not fill a last batch are left out of this epoch.
        """
        order = np.random.default_rng(order_seed).permutation(len(self))
        share = batch_size // ranks.size
        for step in range(self.steps(batch_size)):
            mine = order[step * batch_size + ranks.rank * share :][:share]
            yield self.batch(mine)

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch of :meth:`shuffled`."""
        return len(self) // batch_size

    def sample_ids(self, rows: NDArray[np.int64]) -> list[str]:
        ids: list[str] = self.prepared.samples["sample_id"].take(rows).to_pylist()
        return ids

"""What a reader gives: samples, and their pixels one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sample:
    """One image with its mask, label and group; no pixels."""

    sample_id: str
    label: int
    """Index into the reader's ``classes``."""
    group_id: str | None
    """Shared by the samples of one lesion or patient, which stay in one split; None where not known."""
    source: str
    """Where the image comes from, for people: its path relative to the dataset's root."""
    files: tuple[Path, ...]
    """The image and then its masks; empty for a generated sample."""


class Reader(Protocol):
    """One dataset in its official layout."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""

    @property
    def origin(self) -> str:
        """Where the samples come from, for the manifest and for error messages."""

    def samples(self) -> list[Sample]:
        """Every sample, sorted by ``sample_id``."""

    def problems(self) -> list[str]:
        """Faults of the layout that belong to no sample (a missing folder, a mask without an image)."""

    def load(self, sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Decode one sample; safe to call from several threads.

        Returns:
            The RGB image [H, W, 3] and the mask [H, W] of 0 and 1.

        Raises:
            InputError: the sample cannot be used; the message names the file and the remedy.
        """

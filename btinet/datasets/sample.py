"""What a reader gives: samples, their pixels one at a time, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from btinet.errors import InputError
from btinet.storage import Storage

SplitName = Literal["train", "val", "test"]
Severity = Literal["error", "warning"]


class Check(StrEnum):
    """What can be wrong with a dataset."""

    LAYOUT = "layout"
    """A folder or file of the layout is missing, or a file has a name that does not belong there."""
    METADATA = "metadata"
    """A row of the metadata cannot be used: an unknown label, a repeated image, a missing value."""
    MISSING_FILE = "missing-file"
    """Named by the metadata or the layout, and not there."""
    ORPHAN_FILE = "orphan-file"
    """There, and named by no row of the metadata."""
    UNREADABLE = "unreadable"
    """Truncated, empty, not an image, or of a kind that is not read."""
    SIZE_MISMATCH = "size-mismatch"
    """Image and mask do not cover the same area."""
    NON_BINARY_MASK = "non-binary-mask"
    EMPTY_MASK = "empty-mask"
    """Nothing is marked in a class that has lesions."""
    FULL_MASK = "full-mask"
    """Everything is marked."""
    UNEXPECTED_MASK = "unexpected-mask"
    """Something is marked in a class that has no lesions."""
    CLASS_SIZE = "class-size"
    """A class is missing, or too small to be in every split."""
    EXACT_DUPLICATE = "exact-duplicate"
    NEAR_DUPLICATE = "near-duplicate"
    DUPLICATE_ACROSS_CLASSES = "duplicate-across-classes"
    DUPLICATE_ACROSS_SPLITS = "duplicate-across-splits"
    GROUP_ACROSS_SPLITS = "group-across-splits"


class Finding(NamedTuple):
    """One thing that is wrong."""

    check: Check
    severity: Severity
    """An error keeps the dataset from being prepared; a warning is for a person to judge."""
    where: str
    """The file, sample or class."""
    message: str
    """What is wrong with it and what to do."""
    samples: tuple[str, ...] = ()
    """The ids of the samples concerned."""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class SampleError(InputError):
    """A sample that cannot be used."""

    def __init__(self, check: Check, where: object, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.finding = Finding(check, "error", str(where), message)


@dataclass(frozen=True)
class Sample:
    """One image with its masks, label and group; no pixels."""

    sample_id: str
    label: int
    """Index into the reader's ``classes``."""
    group_id: str | None
    """Shared by the samples of one lesion or patient, which stay in one split; None where not known."""
    source: str
    """Where the image comes from, for people: its path relative to the dataset's root."""
    files: tuple[Storage, ...]
    """The image and then its masks; empty for a generated sample."""
    split: SplitName | None = None
    """The split that the dataset's authors put it in; None where they did not."""


class Pixels(NamedTuple):
    """A decoded sample."""

    image: NDArray[np.uint8]
    """RGB [H, W, 3]"""
    mask: NDArray[np.uint8]
    """[h, w] of 0 and 1, covering the same area; all 0 where there is no mask file."""


class Reader(Protocol):
    """One dataset in its official layout."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""

    @property
    def healthy(self) -> frozenset[str] | None:
        """The classes whose images show no lesion; None where that is to be seen from the masks."""

    @property
    def origin(self) -> str:
        """Where the samples come from, for the manifest and for error messages."""

    def samples(self) -> list[Sample]:
        """Every sample, sorted by ``sample_id``."""

    def findings(self) -> list[Finding]:
        """What is wrong with the layout and the metadata, found without decoding an image."""

    def load(self, sample: Sample) -> Pixels:
        """Decode one sample; safe to call from several threads.

        Raises:
            SampleError: the sample cannot be used; the message names the file and the remedy.
        """

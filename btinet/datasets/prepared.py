"""The prepared store: a dataset decoded once, resized, uint8, addressed by the hash of its content.

A store is the folder ``datasets/<name>/<hash>/``:

* ``part-00000.arrow``...: Arrow IPC files of at most PART_ROWS rows, columns ``image`` (S*S*3 bytes) and
  ``mask`` (S*S bytes of 0 and 1), in record batches of at most BATCH_ROWS rows.
* ``samples.parquet``: one row a sample (SAMPLES), aligned with the rows of the parts in order.
* ``duplicates.parquet``: pairs of samples that show the same (duplicates.DUPLICATES), found at the source's size.
* ``manifest.json``: written last. A folder without it is unfinished and is never read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import ValidationError

from btinet.config import Strict
from btinet.errors import InputError
from btinet.storage import Storage, cache_folder, file_sha256

FORMAT = 3
"""Version of the store's layout and of how pixels get into it. Raise it with any change to either."""
READABLE = (2, FORMAT)
"""Formats of this layout: where only the pixels were made in another way, what was trained on them keeps its data."""

PART_ROWS = 1024
BATCH_ROWS = 16
SAMPLES_FILE = "samples.parquet"
DUPLICATES_FILE = "duplicates.parquet"
MANIFEST_FILE = "manifest.json"

SAMPLES = pa.schema(
    [
        pa.field("sample_id", pa.string(), False),
        pa.field("group_id", pa.string()),
        pa.field("label", pa.int8(), False),
        pa.field("split", pa.string()),  # the authors' own, null where they made none
        pa.field("has_mask", pa.bool_(), False),  # any pixel is marked, at the prepared size
        pa.field("gt_area", pa.int32(), False),  # marked pixels, at the prepared size
        pa.field("source", pa.string(), False),
        pa.field("source_height", pa.int32(), False),
        pa.field("source_width", pa.int32(), False),
        pa.field("intensity_mean", pa.float32(), False),  # over the prepared pixels and channels, 0..255
        pa.field("intensity_std", pa.float32(), False),
    ]
)


class FileEntry(Strict):
    sha256: str
    bytes: int


class Source(Strict):
    """What the store was first made from."""

    origin: str
    fingerprint: str


class Manifest(Strict):
    """What a prepared dataset is."""

    format: int
    name: str
    hash: str
    """Start of the SHA-256 of format, name, size, classes, and every sample's id, group, label, split and pixels (by
    their XXH3)."""
    image_size: int
    classes: tuple[str, ...]
    class_counts: dict[str, int]
    count: int
    files: dict[str, FileEntry]
    source: Source
    versions: dict[str, str]


def store_folder(storage_root: Storage, name: str, hash: str) -> Storage:
    return storage_root / "datasets" / name / hash


def read_manifest(folder: Storage) -> Manifest | None:
    """The manifest of a prepared dataset; None when ``folder`` is absent or unfinished.

    Raises:
        InputError: the manifest is damaged or of another format.
    """
    file = folder / MANIFEST_FILE
    if not file.exists():
        return None
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise InputError(f"{file}: not a manifest: remove that folder and prepare again\n{error}") from error
    if manifest.format not in READABLE:
        readable = " and ".join(map(str, READABLE))
        raise InputError(f"{file}: format {manifest.format}, this version reads {readable}: prepare the dataset again")
    return manifest


def open_prepared(storage_root: Storage, name: str, hash: str) -> PreparedDataset:
    """Open a prepared dataset, checking every file against the manifest.

    Parts on a disk are memory-mapped in place; from object storage they are first copied to
    ``$BTINET_CACHE/datasets/<name>/<hash>`` (default ~/.cache/btinet), once per node.

    Raises:
        InputError: there is no such prepared dataset, or a file does not match the manifest.
    """
    folder = store_folder(storage_root, name, hash)
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder}: no prepared dataset: run `btinet prepare` with this experiment and storage")
    if folder.is_local:
        local = Path(folder.path)
    else:
        local = cache_folder() / "datasets" / name / hash
        local.mkdir(parents=True, exist_ok=True)
        with FileLock(local.with_name(f"{hash}.lock")):  # one process of the node downloads, the others wait for it
            for file, entry in manifest.files.items():
                if not _matches(local / file, entry) and (folder / file).exists():
                    (folder / file).download(local / file)
    for file, entry in manifest.files.items():
        if not _matches(local / file, entry):
            raise InputError(f"{folder / file} does not match its manifest: remove that folder and prepare again")
    return PreparedDataset(manifest, local)


class PreparedDataset:
    """A prepared dataset on the local disk, memory-mapped: pixels are read when asked for.

    Attributes:
        manifest: what it is.
        samples: one row a sample (SAMPLES); a row number below is a row of this table.
        duplicates: pairs of samples that show the same (duplicates.DUPLICATES).
        labels: int64 [N], index into ``manifest.classes``.
    """

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self.manifest = manifest
        self.samples: pa.Table = pq.read_table(folder / SAMPLES_FILE)
        self.duplicates: pa.Table = pq.read_table(folder / DUPLICATES_FILE)
        self.labels: NDArray[np.int64] = self.samples["label"].to_numpy().astype(np.int64)
        size = manifest.image_size
        # NumPy views of each record batch's memory; Arrow's take() would first join all batches in memory
        self._images: list[NDArray[np.uint8]] = []
        self._masks: list[NDArray[np.uint8]] = []
        for file in sorted(file for file in manifest.files if file.endswith(".arrow")):
            reader = pa.ipc.open_file(pa.memory_map(str(folder / file)))
            for batch in (reader.get_batch(number) for number in range(reader.num_record_batches)):
                self._images.append(_view(batch["image"], (size, size, 3)))
                self._masks.append(_view(batch["mask"], (size, size)))
        self._starts = np.cumsum([0, *(len(batch) for batch in self._images)])

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, rows: NDArray[np.integer]) -> NDArray[np.uint8]:
        """RGB images of the given rows, in that order: uint8 [n, S, S, 3], a copy."""
        return self._gather(self._images, rows)

    def masks(self, rows: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Masks of the given rows, in that order: uint8 [n, S, S] of 0 and 1, a copy."""
        return self._gather(self._masks, rows)

    def _gather(self, batches: list[NDArray[np.uint8]], rows: NDArray[np.integer]) -> NDArray[np.uint8]:
        rows = np.asarray(rows)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a dataset with {len(self)}")
        gathered = np.empty((len(rows), *batches[0].shape[1:]), np.uint8)
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for position, (row, number) in enumerate(zip(rows, numbers, strict=True)):
            gathered[position] = batches[number][row - self._starts[number]]
        return gathered


def _view(column: pa.FixedSizeBinaryArray, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.frombuffer(column.buffers()[1], np.uint8).reshape(len(column), *shape)


def _matches(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.bytes and file_sha256(path) == entry.sha256

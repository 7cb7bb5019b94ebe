"""Writes the prepared store (its format: ``prepared.py``).

Samples are decoded in a stream, a few at a time, so memory does not grow with the dataset. Every fault of the
dataset is collected on the way; if there is one, all are reported together and nothing is published.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from btinet.config import DatasetSettings, json_hash
from btinet.datasets.prepared import (
    BATCH_ROWS,
    FORMAT,
    MANIFEST_FILE,
    PART_ROWS,
    SAMPLES,
    SAMPLES_FILE,
    FileEntry,
    Manifest,
    Source,
    read_manifest,
    store_folder,
)
from btinet.datasets.registry import open_reader
from btinet.datasets.sample import Reader, Sample
from btinet.errors import InputError
from btinet.storage import Storage, file_sha256

MAX_PROBLEMS = 50
"""How many faults an error message lists."""

HASH_DIGITS = 16

In = TypeVar("In")
Out = TypeVar("Out")
Progress = Callable[[int, int], None]


class Prepared(NamedTuple):
    """What :func:`prepare` did."""

    manifest: Manifest
    reused: bool
    """True when the store was already there and nothing was written."""


class Decoded(NamedTuple):
    """One sample's pixels at the prepared size, and its row of ``samples.parquet``."""

    image: bytes
    mask: bytes
    label: int
    record: dict[str, object]


def prepare(
    settings: DatasetSettings,
    image_size: int,
    storage: Storage,
    data_root: str | None = None,
    on_progress: Progress | None = None,
) -> Prepared:
    """Decode a dataset once and publish it under ``storage/datasets/<name>/<hash>/``.

    The same source gives the same hash on any machine. When the source (by its files' content) was prepared
    before, nothing is decoded. The files are first made in a temporary folder: TMPDIR must have room.

    Args:
        image_size: side S of the square that images (bilinear) and masks (nearest) are resized to, in pixels.
        storage: the storage root.
        data_root: folder below which datasets are looked for, when ``settings.root`` is None.
        on_progress: called with (samples done, samples in all) after each sample.

    Raises:
        InputError: the dataset is not found, or any of its files cannot be used; all faults are listed.
    """
    reader = open_reader(settings, data_root)
    samples = choose_subset(reader.samples(), settings.max_samples)
    problems = reader.problems()
    fingerprint = source_fingerprint(settings, image_size, reader, samples)
    pointer = storage / "datasets" / settings.name / f"prepared-{fingerprint[:HASH_DIGITS]}.json"

    if not problems and pointer.exists():
        manifest = _published(store_folder(storage, settings.name, pointer.read_json()["hash"]))
        if manifest is not None:
            return Prepared(manifest, reused=True)

    with tempfile.TemporaryDirectory(prefix="btinet-prepare-") as temporary:
        folder = Path(temporary)
        content_hash, labels = _write_files(settings.name, reader, samples, problems, image_size, folder, on_progress)
        target = store_folder(storage, settings.name, content_hash)
        existing = _published(target)
        manifest = existing or _publish(
            folder,
            target,
            Manifest(
                format=FORMAT,
                name=settings.name,
                hash=content_hash,
                image_size=image_size,
                classes=reader.classes,
                class_counts={name: labels[label] for label, name in enumerate(reader.classes)},
                count=labels.total(),
                files=_file_entries(folder, sorted(file.name for file in folder.iterdir())),
                source=Source(origin=reader.origin, fingerprint=fingerprint),
                versions={package: version(package) for package in ("btinet", "numpy", "pillow", "torch")},
            ),
        )
    pointer.write_json({"hash": content_hash})
    return Prepared(manifest, reused=existing is not None)


def export_store(manifest: Manifest, storage: Storage, folder: Path) -> None:
    """Copy a published store out of storage into ``folder`` (for DVC to version), the manifest last."""
    source = store_folder(storage, manifest.name, manifest.hash)
    for name in (*manifest.files, MANIFEST_FILE):
        (source / name).download(folder / name)


def import_store(folder: Path, storage: Storage) -> Manifest:
    """Publish a store that :func:`export_store` (or ``dvc pull``) left in ``folder``, unless it is there already.

    Raises:
        InputError: ``folder`` holds no store, or a file that does not match its manifest.
    """
    manifest = read_manifest(Storage(str(folder)))
    if manifest is None:
        raise InputError(f"{folder}: no prepared dataset: run `btinet prepare` or `dvc pull` first")
    target = store_folder(storage, manifest.name, manifest.hash)
    if _published(target) is None:
        if _file_entries(folder, manifest.files) != manifest.files:
            raise InputError(f"{folder}: files do not match {MANIFEST_FILE}: run `dvc checkout` or prepare again")
        _publish(folder, target, manifest)
    return manifest


def choose_subset(samples: list[Sample], max_samples: int | None) -> list[Sample]:
    """A class-stratified subset that depends on the ids alone; a smaller one is part of every larger one.

    Within a class of n samples, those ranked 0, 1, 2... by the hash of their id get keys 0, 1.5/n, 2.5/n...
    The smallest keys of all classes are taken: classes keep their proportions, and each has one at least.
    """
    if max_samples is None or max_samples >= len(samples):
        return samples
    by_class: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_class[sample.label].append(sample)
    keyed = []
    for members in by_class.values():
        members.sort(key=_id_hash)
        keyed += [
            ((rank + 0.5) / len(members) if rank else 0.0, _id_hash(sample), sample)
            for rank, sample in enumerate(members)
        ]
    keyed.sort(key=lambda entry: entry[:2])
    return sorted((sample for _, _, sample in keyed[:max_samples]), key=lambda sample: sample.sample_id)


def source_fingerprint(settings: DatasetSettings, image_size: int, reader: Reader, samples: list[Sample]) -> str:
    """SHA-256 of all that the prepared store follows from: the settings, the samples and their files."""
    rows = [
        [
            sample.sample_id,
            sample.label,
            sample.group_id,
            sample.source,
            [_file_identity(file) for file in sample.files],
        ]
        for sample in samples
    ]
    return json_hash([FORMAT, settings.name, settings.max_samples, image_size, reader.classes, rows])


def resize_image(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize [H, W, 3] to [size, size, 3], bilinear without antialiasing (cv2.INTER_LINEAR), half rounded up.

    Interpolates in float64 and rounds ties the same way in spite of numerical error: the result, and so the
    content hash, does not depend on the CPU's vector instructions.
    """
    pixels = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False, antialias=False)
    return (resized[0].permute(1, 2, 0) + (0.5 + 1e-9)).floor().numpy().astype(np.uint8)


def resize_mask(mask: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize [H, W] to [size, size] by the nearest pixel (cv2.INTER_NEAREST)."""
    return F.interpolate(torch.from_numpy(mask)[None, None], (size, size), mode="nearest")[0, 0].numpy()


def _write_files(
    name: str,
    reader: Reader,
    samples: list[Sample],
    problems: list[str],
    image_size: int,
    folder: Path,
    on_progress: Progress | None,
) -> tuple[str, Counter[int]]:
    """Write the parts and ``samples.parquet`` into ``folder``; return content hash and label counts."""
    problems = list(problems)
    records: list[dict[str, object]] = []
    labels: Counter[int] = Counter()
    digest = hashlib.sha256(json.dumps([FORMAT, name, image_size, reader.classes]).encode())

    def decoded_rows() -> Iterator[Decoded]:
        outcomes = _map_in_order(lambda sample: _decode(reader, sample, image_size), samples)
        for done, outcome in enumerate(outcomes, start=1):
            if on_progress is not None:
                on_progress(done, len(samples))
            if isinstance(outcome, InputError):
                problems.append(str(outcome))
                continue
            row = outcome.record
            digest.update(json.dumps([row["sample_id"], row["group_id"], row["label"]]).encode())
            digest.update(outcome.image)
            digest.update(outcome.mask)
            records.append(row)
            labels[outcome.label] += 1
            yield outcome

    rows = decoded_rows()
    for part in range(-(-len(samples) // PART_ROWS)):
        _write_part(folder / f"part-{part:05d}.arrow", islice(rows, PART_ROWS), image_size)
    if problems:
        raise InputError(_problem_list(name, reader.origin, problems))
    pq.write_table(pa.Table.from_pylist(records, SAMPLES), folder / SAMPLES_FILE, compression="zstd")
    return digest.hexdigest()[:HASH_DIGITS], labels


def _write_part(path: Path, rows: Iterator[Decoded], image_size: int) -> None:
    area = image_size**2
    schema = pa.schema(
        [
            pa.field("image", pa.binary(area * 3), nullable=False),
            pa.field("mask", pa.binary(area), nullable=False),
        ]
    )
    with pa.ipc.new_file(str(path), schema) as writer:
        while batch := list(islice(rows, BATCH_ROWS)):
            columns = [[row.image for row in batch], [row.mask for row in batch]]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _decode(reader: Reader, sample: Sample, image_size: int) -> Decoded | InputError:
    try:
        image, mask = reader.load(sample)
    except InputError as problem:
        return problem
    small_mask = resize_mask(mask, image_size)
    area = int(small_mask.sum())
    record: dict[str, object] = {
        "sample_id": sample.sample_id,
        "group_id": sample.group_id,
        "label": sample.label,
        "has_mask": area > 0,
        "gt_area": area,
        "source": sample.source,
        "source_height": image.shape[0],
        "source_width": image.shape[1],
    }
    small_image = resize_image(image, image_size)
    return Decoded(small_image.tobytes(), small_mask.tobytes(), sample.label, record)


def _map_in_order(function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """``map`` on a few threads, in order; no more than a few results wait to be taken."""
    workers = min(8, os.cpu_count() or 1)
    pending: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _published(folder: Storage) -> Manifest | None:
    """The manifest in ``folder`` if the store there is whole."""
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    for name, entry in manifest.files.items():
        if not (folder / name).exists() or (folder / name).size() != entry.bytes:
            return None
    return manifest


def _publish(folder: Path, target: Storage, manifest: Manifest) -> Manifest:
    """Copy the store from ``folder`` to ``target``, the manifest last."""
    for name in manifest.files:
        (target / name).upload(folder / name)
    (target / MANIFEST_FILE).write_json(manifest.model_dump(mode="json"))
    return manifest


def _file_entries(folder: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    files = {name: folder / name for name in names}
    return {
        name: FileEntry(sha256=file_sha256(file), bytes=file.stat().st_size)
        for name, file in files.items()
        if file.exists()
    }


def _problem_list(name: str, origin: str, problems: list[str]) -> str:
    lines = [f"dataset {name!r} at {origin}: {len(problems)} problem(s)", *problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"and {len(problems) - MAX_PROBLEMS} more")
    return "\n  ".join(lines)


def _file_identity(path: Path) -> list[str]:
    try:
        return [path.name, file_sha256(path)]
    except OSError:  # decoding it will report the file
        return [path.name, "unreadable"]


def _id_hash(sample: Sample) -> str:
    return hashlib.sha256(sample.sample_id.encode()).hexdigest()

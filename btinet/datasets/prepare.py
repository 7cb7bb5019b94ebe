"""Writes the prepared store (its format: ``prepared.py``).

Samples are decoded in a stream, a few at a time, so memory does not grow with the dataset. Finished parts stay in the
cache until the store is published: an interrupted preparation goes on from them. Every fault of the dataset is
collected on the way; if there is one, all are reported together and nothing is published.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from numpy.typing import NDArray

from btinet.config import DatasetSettings, json_hash
from btinet.datasets.duplicates import find_duplicates
from btinet.datasets.examine import FACTS, dataset_findings, examine, map_in_order, pixels_hash
from btinet.datasets.prepared import (
    BATCH_ROWS,
    DUPLICATES_FILE,
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
from btinet.datasets.sample import Finding, Reader, Sample
from btinet.errors import InputError
from btinet.storage import Storage, cache_folder, file_sha256

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MAX_FINDINGS = 50
"""How many faults an error message lists."""

HASH_DIGITS = 16

PREPARED_FACTS = pa.schema(
    [
        *FACTS,
        *(field for field in SAMPLES if field.name not in FACTS.names),
        pa.field("prepared_hash", pa.string(), False),  # of image and mask
    ]
)
"""What is known of a sample at its own size and at the prepared size."""

IDENTITY = ("sample_id", "group_id", "label", "split", "pixels_hash", "prepared_hash")
"""What of a sample the dataset's hash covers."""

Progress = Callable[[int, int], None]


class Prepared(NamedTuple):
    """What :func:`prepare` did."""

    manifest: Manifest
    reused: bool
    """True when the store was already there and nothing was written."""


class Part(NamedTuple):
    """A finished file of the store."""

    file: FileEntry
    digest: str
    """SHA-256 of its samples' IDENTITY."""
    facts: pa.Table
    """PREPARED_FACTS"""


class Decoded(NamedTuple):
    """A few samples at the prepared size, and what is wrong with those that could not be decoded."""

    images: NDArray[np.uint8]
    """[n, S, S, 3]"""
    masks: NDArray[np.uint8]
    """[n, S, S]"""
    facts: list[dict[str, object]]
    """A row of PREPARED_FACTS each."""
    findings: list[Finding]


def prepare(
    settings: DatasetSettings,
    image_size: int,
    storage: Storage,
    data_root: str | None = None,
    on_progress: Progress | None = None,
) -> Prepared:
    """Decode a dataset once and publish it under ``storage/datasets/<name>/<hash>/``.

    The same source gives the same hash on any machine. When the source (by its files' content) was prepared
    before, nothing is decoded. The files are first made in the cache (BTINET_CACHE), which must have room.

    Args:
        image_size: side S of the square that images (bilinear) and masks (nearest) are resized to, in pixels.
        storage: the storage root.
        data_root: folder below which datasets are looked for, when ``settings.root`` is None.
        on_progress: called with (samples done, samples in all) after every BATCH_ROWS samples.

    Raises:
        InputError: the dataset is not found, or any of its files cannot be used; all faults are listed.
    """
    reader = open_reader(settings, data_root)
    samples = choose_subset(reader.samples(), settings.max_samples)
    if not samples:
        raise _refusal(settings.name, reader, reader.findings())
    fingerprint = source_fingerprint(settings, image_size, reader, samples)
    pointer = storage / "datasets" / settings.name / f"prepared-{fingerprint[:HASH_DIGITS]}.json"
    folder = cache_folder() / "preparing" / fingerprint[:HASH_DIGITS]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # whoever asks for the same at the same time waits for it
        if pointer.exists():
            manifest = _published(store_folder(storage, settings.name, pointer.read_json()["hash"]))
            if manifest is not None and not _errors(reader.findings()):
                shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed after it published
                return Prepared(manifest, reused=True)
        folder.mkdir(exist_ok=True)
        try:
            content_hash, files, facts = _write_files(settings.name, reader, samples, image_size, folder, on_progress)
        except InputError:
            shutil.rmtree(folder)
            raise
        target = store_folder(storage, settings.name, content_hash)
        existing = _published(target)
        labels = Counter(facts["label"].to_pylist())
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
                count=len(facts),
                files=files,
                source=Source(origin=reader.origin, fingerprint=fingerprint),
                versions={package: version(package) for package in ("btinet", "opencv-python-headless", "pillow")},
            ),
        )
        pointer.write_json({"hash": content_hash})
        shutil.rmtree(folder)
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
    files = [file for sample in samples for file in sample.files]
    is_local = all(file.is_local for file in files)
    # threads would spend more on taking turns than a small file on a disk takes to read
    identities = iter(map(_file_identity, files) if is_local else map_in_order(_file_identity, files))
    rows = [
        [
            sample.sample_id,
            sample.label,
            sample.group_id,
            sample.split,
            sample.source,
            list(islice(identities, len(sample.files))),
        ]
        for sample in samples
    ]
    return json_hash([FORMAT, settings.name, settings.max_samples, image_size, reader.classes, rows])


def resize_image(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize [H, W, 3] to [size, size, 3], bilinear without antialiasing, half rounded up.

    OpenCV's exact variant, in integers: the result, and so the content hash, does not depend on the CPU.
    """
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR_EXACT), np.uint8)


def resize_mask(mask: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize [H, W] to [size, size] by the nearest pixel (cv2.INTER_NEAREST)."""
    rows, columns = (np.arange(size) * length // size for length in mask.shape)
    return mask.take(rows, axis=0).take(columns, axis=1)


def _write_files(
    name: str,
    reader: Reader,
    samples: list[Sample],
    image_size: int,
    folder: Path,
    on_progress: Progress | None,
) -> tuple[str, dict[str, FileEntry], pa.Table]:
    """Write the store's files into ``folder``, but for the parts that are there; content hash, files and facts."""
    findings = list(reader.findings())
    parts: dict[str, Part] = {}
    for start in range(0, len(samples), PART_ROWS):
        path = folder / f"part-{start // PART_ROWS:05d}.arrow"
        chunk = samples[start : start + PART_ROWS]
        part = _finished_part(path)
        if part is None:
            batches = map_in_order(lambda batch: _decode(reader, batch, image_size), _batches(chunk))
            part = _write_part(
                path, _watched(batches, findings, partial(_tell, on_progress, len(samples), start)), image_size
            )
        else:
            _tell(on_progress, len(samples), start, len(chunk))
        parts[path.name] = part

    facts = pa.concat_tables(part.facts for part in parts.values())
    columns = (facts[column].to_pylist() for column in ("sample_id", "pixels_hash", "fingerprint"))
    pairs = find_duplicates(*columns)
    findings += dataset_findings(reader.classes, reader.healthy, facts, pairs, facts["split"].to_pylist())
    if _errors(findings):
        raise _refusal(name, reader, findings)
    pq.write_table(facts.select(SAMPLES.names).cast(SAMPLES), folder / SAMPLES_FILE, compression="zstd")
    pq.write_table(pairs, folder / DUPLICATES_FILE, compression="zstd")
    identity = [FORMAT, name, image_size, reader.classes, [part.digest for part in parts.values()]]
    files = {file: part.file for file, part in parts.items()} | _file_entries(folder, (SAMPLES_FILE, DUPLICATES_FILE))
    return json_hash(identity)[:HASH_DIGITS], files, facts


def _finished_part(path: Path) -> Part | None:
    """The part, if an interrupted preparation left it whole."""
    sidecar = path.with_suffix(".facts")
    if not (sidecar.exists() and path.exists()):
        return None
    facts = pq.read_table(sidecar)
    file, digest = (facts.schema.metadata[key] for key in (b"file", b"digest"))
    return Part(FileEntry.model_validate_json(file), digest.decode(), facts.replace_schema_metadata())


def _batches(samples: list[Sample]) -> list[list[Sample]]:
    return [samples[start : start + BATCH_ROWS] for start in range(0, len(samples), BATCH_ROWS)]


def _write_part(path: Path, batches: Iterator[Decoded], image_size: int) -> Part:
    """Write the pixels, and when they are all there a sidecar with the facts, which says so.

    A part that lacks a sample gets none: whoever goes on from here shall find again what is wrong with it.
    """
    area = image_size**2
    schema = pa.schema(
        [
            pa.field("image", pa.binary(area * 3), nullable=False),
            pa.field("mask", pa.binary(area), nullable=False),
        ]
    )
    facts: list[dict[str, object]] = []
    is_whole = True
    digest = hashlib.sha256()
    with _HashedFile(path) as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            arrays = [
                pa.Array.from_buffers(field.type, len(pixels), [None, pa.py_buffer(pixels)])
                for pixels, field in zip((batch.images, batch.masks), schema, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            for row in batch.facts:
                digest.update(json.dumps([row[name] for name in IDENTITY]).encode())
            facts += batch.facts
            is_whole &= not batch.findings
    entry = FileEntry(sha256=file.sha256.hexdigest(), bytes=path.stat().st_size)
    table = pa.Table.from_pylist(facts, PREPARED_FACTS)
    if is_whole:
        metadata = {"file": entry.model_dump_json(), "digest": digest.hexdigest()}
        Storage(str(path.with_suffix(".facts"))).write_table(table.replace_schema_metadata(metadata))
    return Part(entry, digest.hexdigest(), table)


class _HashedFile(io.BufferedWriter):
    """A new file whose content is hashed as it is written, while other threads decode."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.sha256 = hashlib.sha256()

    def write(self, content: ReadableBuffer, /) -> int:
        self.sha256.update(content)
        return super().write(content)


def _watched(batches: Iterator[Decoded], findings: list[Finding], on_done: Callable[[int], None]) -> Iterator[Decoded]:
    """The batches; what is wrong with samples that could not be decoded goes to ``findings``."""
    done = 0
    for batch in batches:
        findings += batch.findings
        done += len(batch.facts) + len(batch.findings)
        on_done(done)
        yield batch


def _decode(reader: Reader, samples: list[Sample], image_size: int) -> Decoded:
    images = np.empty((len(samples), image_size, image_size, 3), np.uint8)
    masks = np.empty((len(samples), image_size, image_size), np.uint8)
    facts: list[dict[str, object]] = []
    findings: list[Finding] = []
    for sample in samples:
        outcome = examine(reader, sample)
        if isinstance(outcome, Finding):
            findings.append(outcome)
            continue
        image, mask = images[len(facts)], masks[len(facts)]
        image[:] = resize_image(outcome.pixels.image, image_size)
        mask[:] = resize_mask(outcome.pixels.mask, image_size)
        area = int(mask.sum())
        hashed = {"prepared_hash": pixels_hash(image, mask)}
        facts.append(outcome.facts | {"has_mask": area > 0, "gt_area": area} | _intensity(image) | hashed)
    return Decoded(images[: len(facts)], masks[: len(facts)], facts, findings)


def _intensity(image: NDArray[np.uint8]) -> dict[str, float]:
    """Mean and standard deviation over pixels and channels."""
    mean, deviation = cv2.meanStdDev(image.reshape(len(image), -1))
    return {"intensity_mean": mean.item(), "intensity_std": deviation.item()}


def _tell(on_progress: Progress | None, total: int, before: int, done: int) -> None:
    if on_progress is not None:
        on_progress(before + done, total)


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


def _errors(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]


def _refusal(name: str, reader: Reader, findings: Iterable[Finding]) -> InputError:
    errors = _errors(findings)
    lines = [f"dataset {name!r} at {reader.origin}: {len(errors)} problem(s)", *map(str, errors[:MAX_FINDINGS])]
    if len(errors) > MAX_FINDINGS:
        lines.append(f"and {len(errors) - MAX_FINDINGS} more; `btinet data audit` lists and shows them all")
    return InputError("\n  ".join(lines))


def _file_identity(file: Storage) -> list[str]:
    try:
        return [file.name, file.sha256()]
    except OSError:  # decoding it will report the file
        return [file.name, "unreadable"]


def _id_hash(sample: Sample) -> str:
    return hashlib.sha256(sample.sample_id.encode()).hexdigest()

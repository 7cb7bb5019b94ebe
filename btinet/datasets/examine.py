"""Decodes every sample of a dataset and says what is wrong: what preparation and audit have in common.

Faults of one sample are found where it is decoded; what only shows over all of them (classes without samples,
empty masks among full ones, duplicates) is found in the table of facts that decoding leaves.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import combinations
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from btinet.datasets.duplicates import clusters, fingerprint
from btinet.datasets.sample import Check, Finding, Pixels, Reader, Sample, SampleError, Severity

LESION_CLASS_SHARE = 0.5
"""Where a reader does not say which classes are healthy: a class has lesions if this share of its masks is marked."""
TINY_CLASS = 7
"""The fewest samples of a class from which 70/15/15 leaves one in every split."""

MAX_LISTED = 6
"""How many samples of a cluster a message names."""

FACTS = pa.schema(
    [
        pa.field("sample_id", pa.string(), False),
        pa.field("group_id", pa.string()),
        pa.field("label", pa.int8(), False),
        pa.field("split", pa.string()),  # the authors' own, null where they made none
        pa.field("source", pa.string(), False),
        pa.field("source_height", pa.int32(), False),
        pa.field("source_width", pa.int32(), False),
        pa.field("marked", pa.float32(), False),  # share of the mask's own pixels
        pa.field("pixels_hash", pa.string(), False),  # of the decoded image: equal for exact duplicates
        pa.field("fingerprint", pa.binary(), False),  # duplicates.fingerprint
    ]
)
"""What is known of a sample once it is decoded."""


In = TypeVar("In")
Out = TypeVar("Out")


class Examined(NamedTuple):
    """A sample that could be decoded."""

    sample: Sample
    pixels: Pixels
    facts: dict[str, object]
    """A row of :data:`FACTS`."""


def examine(reader: Reader, sample: Sample) -> Examined | Finding:
    """Decode a sample and measure it; what is wrong with it if it cannot be used."""
    try:
        pixels = reader.load(sample)
    except SampleError as error:
        return error.finding._replace(samples=(sample.sample_id,))
    image, mask = pixels
    facts = {
        "sample_id": sample.sample_id,
        "group_id": sample.group_id,
        "label": sample.label,
        "split": sample.split,
        "source": sample.source,
        "source_height": image.shape[0],
        "source_width": image.shape[1],
        "marked": np.count_nonzero(mask) / mask.size,
        "pixels_hash": pixels_hash(image),
        "fingerprint": fingerprint(image),
    }
    return Examined(sample, pixels, facts)


def pixels_hash(*arrays: NDArray[np.uint8]) -> str:
    """XXH3 (128 bits) of shapes and pixels: as good as SHA-256 unless somebody forges images, and 30 times as fast."""
    digest = xxhash.xxh3_128()
    for array in arrays:
        digest.update(np.array(array.shape).data)
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def map_in_order(function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """``map`` on a few threads, in order; no more than a few results wait to be taken, so memory is bounded.

    The threads share the cores as they are: OpenCV, which would start as many again in each, is held to one.
    """
    workers = min(8, os.cpu_count() or 1)
    pending: deque[Future[Out]] = deque()
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def dataset_findings(
    classes: tuple[str, ...],
    healthy: frozenset[str] | None,
    facts: pa.Table,
    pairs: pa.Table,
    splits: Sequence[str | None],
) -> list[Finding]:
    """What is wrong over all samples.

    Args:
        classes: class names.
        healthy: classes without lesions; None to tell by their masks.
        facts: one row a sample (FACTS).
        pairs: its duplicates, see :func:`btinet.datasets.duplicates.find_duplicates`.
        splits: each sample's split, row-aligned; None where it is in none.
    """
    rows = facts.select(["sample_id", "group_id", "label", "split", "source", "marked"]).to_pylist()
    return [
        *_class_findings(classes, rows),
        *_mask_findings(classes, healthy, rows),
        *_duplicate_findings(classes, rows, pairs, splits),
        *_group_findings(rows, splits),
    ]


Row = dict[str, Any]


def _class_findings(classes: tuple[str, ...], rows: list[Row]) -> Iterator[Finding]:
    counts = Counter(row["label"] for row in rows)
    for label, name in enumerate(classes):
        if not counts[label]:
            yield Finding(
                Check.CLASS_SIZE, "error", f"class {name}", "has no usable image: add some, or get the dataset again"
            )
        elif counts[label] < TINY_CLASS:
            message = f"has {counts[label]} sample(s), too few for training, validation and test: add images"
            yield Finding(Check.CLASS_SIZE, "warning", f"class {name}", message)


def _mask_findings(classes: tuple[str, ...], healthy: frozenset[str] | None, rows: list[Row]) -> Iterator[Finding]:
    if healthy is None:
        marked = defaultdict(list)
        for row in rows:
            marked[classes[row["label"]]].append(row["marked"] > 0)
        healthy = frozenset(name for name, values in marked.items() if np.mean(values) < LESION_CLASS_SHARE)
    for row in rows:
        name, where, samples = classes[row["label"]], row["source"], (row["sample_id"],)
        if name in healthy and row["marked"] > 0:
            message = f"a lesion is marked, and class {name} has none: mend the mask or the class"
            yield Finding(Check.UNEXPECTED_MASK, "error", where, message, samples)
        elif name not in healthy and not row["marked"]:
            message = f"no pixel of the lesion is marked, and class {name} has lesions: mend the mask"
            yield Finding(Check.EMPTY_MASK, "error", where, message, samples)
        elif row["marked"] == 1:  # HAM10000 has lesions that fill the picture
            message = "every pixel is marked as lesion: look whether the lesion fills the picture"
            yield Finding(Check.FULL_MASK, "warning", where, message, samples)


def _duplicate_findings(
    classes: tuple[str, ...], rows: list[Row], pairs: pa.Table, splits: Sequence[str | None]
) -> Iterator[Finding]:
    exact = {frozenset((pair["a"], pair["b"])) for pair in pairs.to_pylist() if pair["exact"]}
    members = defaultdict(list)
    for row, cluster, split in zip(rows, clusters([row["sample_id"] for row in rows], pairs), splits, strict=True):
        members[cluster].append((row, split))
    for cluster in members.values():
        if len(cluster) == 1:
            continue
        samples = tuple(row["sample_id"] for row, _ in cluster)
        where = cluster[0][0]["source"]
        labels = sorted({row["label"] for row, _ in cluster})
        if len(labels) > 1:
            check = Check.DUPLICATE_ACROSS_CLASSES
            kind = "show the same and are labelled " + ", ".join(classes[label] for label in labels)
        elif all(frozenset(pair) in exact for pair in combinations(samples, 2)):
            check, kind = Check.EXACT_DUPLICATE, "are the same, pixel by pixel"
        else:
            check, kind = Check.NEAR_DUPLICATE, "show the same, directly or through one another"
        listed = ", ".join(samples[:MAX_LISTED]) + (", ..." if len(samples) > MAX_LISTED else "")
        yield Finding(check, "warning", where, f"{len(samples)} images {kind}: {listed}", samples)
        crossed = sorted({split for _, split in cluster if split is not None})
        if len(crossed) > 1:
            message = f"{len(samples)} images that show the same are in {' and '.join(crossed)}: {listed}"
            yield Finding(Check.DUPLICATE_ACROSS_SPLITS, "warning", where, message, samples)


def _group_findings(rows: list[Row], splits: Sequence[str | None]) -> Iterator[Finding]:
    """An error where the authors themselves tore a group; a drawn split may be meant to."""
    members = defaultdict(list)
    for row, split in zip(rows, splits, strict=True):
        if row["group_id"] is not None and split is not None:
            members[row["group_id"]].append((row, split))
    for group, entries in members.items():
        crossed = sorted({split for _, split in entries})
        if len(crossed) > 1:
            is_given = all(row["split"] == split for row, split in entries)
            message = f"its images are in {' and '.join(crossed)}: keep a group in one split"
            samples = tuple(row["sample_id"] for row, _ in entries)
            severity: Severity = "error" if is_given else "warning"
            yield Finding(Check.GROUP_ACROSS_SPLITS, severity, f"group {group}", message, samples)

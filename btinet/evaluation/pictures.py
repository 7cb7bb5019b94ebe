"""Pictures beside the numbers: test images and their ground truth, predicted masks, maps of the uncertainty.

With them a results folder shows what its rows are about, without datasets or weights.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from btinet.config import BoundRun
from btinet.datasets.prepared import PreparedDataset
from btinet.datasets.splits import Split
from btinet.evaluation.schema import IMAGES
from btinet.partitions import write_partition
from btinet.storage import Storage

JPEG_QUALITY = 85
VARIANCE_SIDE = 112
"""Maps of the variance are averaged down towards this many pixels a side."""


def images_file(root: Storage, bound: BoundRun) -> Storage:
    """The test images that this run, as any other on the same split, is evaluated on."""
    folder = root / "results" / "images" / f"dataset={bound.run.dataset.name}"
    return folder / f"{bound.prepared}-{bound.split}.parquet"


def write_images(file: Storage, prepared: PreparedDataset, split: Split) -> None:
    """Write a split's test images and ground truth, one row (IMAGES) a sample, in the split's order."""
    rows = split.rows("test")
    samples = prepared.samples.take(rows)
    classes = prepared.manifest.classes
    columns = {
        "dataset": [prepared.manifest.name] * len(rows),
        "prepared": [prepared.manifest.hash] * len(rows),
        "split_id": [split.id] * len(rows),
        "sample_id": samples["sample_id"].to_pylist(),
        "label": samples["label"].to_pylist(),
        "class": [classes[label] for label in samples["label"].to_pylist()],
        "image_jpeg": [_jpeg(prepared.images(row)[0]) for row in rows[:, None]],
        "mask_png": [mask_png(prepared.masks(row)[0] > 0) for row in rows[:, None]],
    }
    write_partition(file, pa.table(columns, IMAGES))


def mask_png(mask: NDArray[np.bool_]) -> bytes:
    """A mask [S, S] as 1-bit PNG."""
    return _encoded(Image.fromarray(mask), "PNG")


def variance_png(variance: Tensor) -> bytes:
    """A map of variances [1, S, S], at most 1/4 each, as a small 8-bit PNG of 510 * sqrt(variance).

    A probability's variance is at most 1/4, which is 255; the root keeps small ones apart.
    """
    factor = max(1, variance.shape[-1] // VARIANCE_SIDE)
    deviation = avg_pool2d(variance, factor)[0].sqrt()
    return _encoded(Image.fromarray((510 * deviation).round().byte().cpu().numpy()), "PNG")


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    return _encoded(Image.fromarray(image), "JPEG", quality=JPEG_QUALITY)


def _encoded(image: Image.Image, format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()

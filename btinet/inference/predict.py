"""Images in; masks, overlays and one table out. Streams: memory does not grow with the number of images.

Images are decoded, and masks written, on a few threads while batches of images go through the model.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pyarrow.csv import CSVWriter
from scipy.ndimage import binary_erosion

from btinet.calibration.reliability import Reliable, Rule, judge
from btinet.datasets.examine import map_in_order
from btinet.datasets.files import shown
from btinet.inference.calibrate import Calibrated
from btinet.inference.images import BadImage, Opened, Source, open_image
from btinet.inference.package import Package
from btinet.inference.predictor import Prediction, Predictor
from btinet.storage import Storage

ROW_GROUP = 1024
"""Rows of the table that are held before they are written."""

MASKS = "masks"
OVERLAYS = "overlays"
TABLE = "predictions"
FAILED_FILE = "failed.csv"

COLOURS: dict[Reliable, tuple[int, int, int]] = {"yes": (0, 200, 83), "check": (255, 171, 0), "no": (255, 23, 68)}

Row = dict[str, Any]


class Options(NamedTuple):
    """How to predict."""

    rule: Rule
    batch_size: int = 16
    mc_passes: int = 0
    overlays: bool = True


class Judged(NamedTuple):
    """A prediction with its verdict."""

    opened: Opened
    prediction: Prediction
    reliable: Reliable
    reason: str


def predict_rows(
    package: Package,
    sources: Iterable[Source],
    target: Storage,
    device: torch.device,
    options: Options,
    first_batch: int = 0,
) -> Iterator[Row | BadImage]:
    """Predict images in order: writes each one's mask and overlay below ``target`` and yields its row of the table.

    Columns: ``image``; ``width``, ``height``; ``reliable``, ``reason``; ``class`` and its probabilities, where the
    method classifies; ``lesion_area`` (pixels) and ``lesion_share`` at the image's own size; ``mask``, ``overlay``
    (paths below ``target``); every number of :func:`btinet.inference.single_pass.numbers`; ``distance`` from the
    training images; and the image's statistics.

    Args:
        first_batch: number of the first batch, where ``sources`` go on with a longer list: seeds Monte Carlo dropout.
    """
    size = package.info.image_size
    predictor = Predictor(package.model, package.info.classes, device, options.mc_passes)

    def predicted() -> Iterator[Judged | BadImage]:
        outcomes = map_in_order(lambda source: open_image(source, size), sources)
        batches = iter(lambda: list(islice(outcomes, options.batch_size)), [])
        for number, batch in enumerate(batches, first_batch):
            opened = [outcome for outcome in batch if isinstance(outcome, Opened)]
            predictions = predictor.predict([image.prepared for image in opened], number) if opened else []
            following = iter(predictions)
            for outcome in batch:
                if isinstance(outcome, BadImage):
                    yield outcome
                else:
                    prediction = next(following)
                    verdict = assess(package.calibrated, options.rule, prediction)
                    yield Judged(outcome, prediction, *verdict)

    def write(judged: Judged | BadImage) -> Row | BadImage:
        if isinstance(judged, BadImage):
            return judged
        return _write(judged, package, target, options.overlays)

    return map_in_order(write, predicted())


def assess(calibrated: Calibrated, rule: Rule, prediction: Prediction) -> tuple[Reliable, str]:
    """Whether a prediction may be relied on, and why."""
    row, typical = prediction.numbers | prediction.statistics, calibrated.distribution
    return judge(calibrated.calibration, rule, row, typical.distance(row), typical.unlike(row))


def own_size(probability: NDArray[np.float32], width: int, height: int) -> NDArray[np.bool_]:
    """A probability map [S, S] as the mask [height, width]: resized (bilinear), then thresholded at 0.5."""
    resized = Image.fromarray(probability).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized) >= 0.5


def draw_overlay(
    preview: NDArray[np.uint8], probability: NDArray[np.float32], reliable: Reliable, caption: str
) -> Image.Image:
    """The mask's outline on the image, coloured by reliability, with a caption below."""
    height, width = preview.shape[:2]
    mask = own_size(probability, width, height)
    thickness = max(1, min(height, width) // 200)
    outline = mask & ~_eroded(mask, thickness)
    painted = preview.copy()
    painted[outline] = COLOURS[reliable]
    strip = 18
    picture = Image.new("RGB", (width, height + strip), (20, 20, 20))
    picture.paste(Image.fromarray(painted))
    ImageDraw.Draw(picture).text((4, height + 3), caption, COLOURS[reliable])
    return picture


def write_tables(rows: Iterable[Row | BadImage], target: Storage) -> Iterator[Row | BadImage]:
    """Write ``predictions.parquet`` and ``predictions.csv`` (and ``failed.csv``) below ``target``, passing rows on.

    The tables appear when all rows have been taken.
    """
    failed: list[BadImage] = []
    with tempfile.TemporaryDirectory() as scratch:
        parquet, csv = Path(scratch) / f"{TABLE}.parquet", Path(scratch) / f"{TABLE}.csv"
        writers: list[Any] = []
        held: list[Row] = []

        def flush() -> None:
            if not held:
                return
            table = pa.Table.from_pylist(held, _schema(held[0]))
            if not writers:
                writers.append(pq.ParquetWriter(parquet, table.schema, compression="zstd"))
                writers.append(CSVWriter(csv, table.schema))
            for writer in writers:
                writer.write_table(table)
            held.clear()

        for row in rows:
            if isinstance(row, BadImage):
                failed.append(row)
            else:
                held.append(row)
                if len(held) == ROW_GROUP:
                    flush()
            yield row
        flush()
        for writer in writers:
            writer.close()
        for file in (parquet, csv):
            if writers:
                (target / file.name).upload(file)
            else:
                (target / file.name).remove()
    _write_failed(failed, target)


def _write_failed(failed: list[BadImage], target: Storage) -> None:
    file = target / FAILED_FILE
    if not failed:
        file.remove()
        return
    columns = {"image": [shown(bad.source.file) for bad in failed], "reason": [bad.reason for bad in failed]}
    buffer = io.BytesIO()
    with CSVWriter(buffer, pa.schema([("image", pa.string()), ("reason", pa.string())])) as writer:
        writer.write_table(pa.table(columns))
    file.write_bytes(buffer.getvalue())


def _write(judged: Judged, package: Package, target: Storage, with_overlay: bool) -> Row:
    opened, prediction, reliable, reason = judged
    mask = own_size(prediction.probability, opened.prepared.width, opened.prepared.height)
    paths = {"mask": f"{MASKS}/{opened.source.name}.png"}
    (target / paths["mask"]).write_bytes(encoded(Image.fromarray(mask), "PNG"))
    row = {"image": shown(opened.source.file)} | summary(package, mask, prediction, reliable, reason)
    caption = f"reliable: {reliable}"
    if "class" in row:
        caption = f"{row['class']} {prediction.numbers['confidence']:.2f}, {caption}"
    if with_overlay:
        paths["overlay"] = f"{OVERLAYS}/{opened.source.name}.jpg"
        picture = draw_overlay(opened.preview, prediction.probability, reliable, caption)
        (target / paths["overlay"]).write_bytes(encoded(picture, "JPEG"))
    distance = package.calibrated.distribution.distance(prediction.numbers | prediction.statistics)
    return row | paths | prediction.numbers | {"distance": distance} | prediction.statistics


def summary(package: Package, mask: NDArray[np.bool_], prediction: Prediction, reliable: Reliable, reason: str) -> Row:
    """What a prediction says: size, verdict, ``class`` where the method classifies, and the lesion of a mask [H, W]."""
    height, width = mask.shape
    row: Row = {"width": width, "height": height, "reliable": reliable, "reason": reason}
    numbers = prediction.numbers
    if "confidence" in numbers:
        row["class"] = max(package.info.classes, key=lambda name: numbers[f"p_{name}"])
    area = int(np.count_nonzero(mask))
    return row | {"lesion_area": area, "lesion_share": area / mask.size}


def _schema(row: Row) -> pa.Schema:
    types = {str: pa.string(), int: pa.int32(), float: pa.float32()}
    return pa.schema([(name, types[type(value)]) for name, value in row.items()])


def encoded(image: Image.Image, kind: str) -> bytes:
    """An image as the bytes of a file of this kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def _eroded(mask: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    eroded: NDArray[np.bool_] = binary_erosion(mask, iterations=steps, border_value=1)
    return eroded

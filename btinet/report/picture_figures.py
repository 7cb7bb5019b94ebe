"""Figures made of pictures: predictions of every method side by side (Fig. 5), and failures (Fig. A19), as SVG.

Which samples are shown follows from the numbers (paper notes B48); their names are beside them.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import contourpy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from btinet.analysis.runs import EvaluatedRun
from btinet.report.templates import render_template

ROWS = 4
"""Samples of a dataset in a figure."""
GOOD_IOU = 0.7
"""What BTI-Net must reach on a sample that is shown as an improvement."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    outline: str = ""
    """SVG path of a mask, in pixels of the picture; empty for none."""
    of_truth: bool = False
    text: str = ""


@dataclass(frozen=True)
class PictureRow:
    sample_id: str
    picture: str
    """data: URI"""
    side: int
    cells: list[Cell]


@dataclass(frozen=True)
class PictureFigure:
    name: str
    caption: str
    columns: list[str]
    rows: list[PictureRow]

    @property
    def svg(self) -> Markup:
        return Markup(render_template("pictures.svg.j2", figure=self))


def picture_figures(runs: Sequence[EvaluatedRun], run_table: pa.Table, images: pa.Table) -> list[PictureFigure]:
    """Figures 5 and A19 for every prepared dataset that has pictures.

    Args:
        runs: each run's rows after its last stage.
        run_table: ``results/runs``.
        images: ``results/images`` (schema.IMAGES).
    """
    prepared = dict(zip(run_table["run_id"].to_pylist(), run_table["prepared"].to_pylist(), strict=True))
    figures = []
    for number, (data, of_dataset) in enumerate(_compared(runs, prepared).items()):
        own = of_dataset[0]
        photos = {row["sample_id"]: row for row in images.filter(pc.field("prepared") == data).to_pylist()}
        rows = {run.key["run_id"]: _lesions(run) for run in of_dataset}
        mine = {key: row for key, row in rows[own.key["run_id"]].items() if key in photos and row["mask_png"]}
        if not mine:
            continue
        chosen, how = _improvements(mine, [run for run in of_dataset[1:] if run.key["variant"] == "full"], rows)
        names = [_name(run, of_dataset) for run in of_dataset]
        where = f"{own.key['dataset']} · {own.key['preset']} · seed {own.key['seed']}"
        figures.append(
            PictureFigure(
                f"qualitative{number}",
                f"Predictions, {where}: {how} (Figure 5)",
                ["Input", "Ground truth", *names],
                [_row(photos[key], [rows[run.key["run_id"]].get(key) for run in of_dataset]) for key in chosen],
            )
        )
        worst = sorted(mine, key=lambda key: (mine[key]["iou"], key))[:ROWS]
        figures.append(
            PictureFigure(
                f"failures{number}",
                f"The lowest IoU of {names[0]}, {where} (Figure A19)",
                ["Input", "Ground truth", names[0]],
                [_row(photos[key], [mine[key]]) for key in worst],
            )
        )
    return figures


def _compared(runs: Sequence[EvaluatedRun], prepared: Mapping[str, str]) -> dict[str, list[EvaluatedRun]]:
    """For each prepared dataset, the runs of the preset and seed that the full BTI-Net comes with first, itself in
    front."""
    of_data: dict[str, list[EvaluatedRun]] = defaultdict(list)
    for run in runs:
        of_data[prepared[run.key["run_id"]]].append(run)
    compared = {}
    for data, found in of_data.items():
        found = sorted(found, key=lambda run: (run.key["method"] != "btinet", run.key["variant"] != "full"))
        first = found[0].key
        compared[data] = [run for run in found if all(run.key[name] == first[name] for name in ("preset", "seed"))]
    return compared


def _lesions(run: EvaluatedRun) -> dict[str, Row]:
    rows = run.test.filter(pc.field("has_mask")).select(["sample_id", "iou", "mask_png", "probs"])
    return {row["sample_id"]: row for row in rows.to_pylist()}


def _improvements(
    mine: dict[str, Row], others: list[EvaluatedRun], rows: dict[str, dict[str, Row]]
) -> tuple[list[str], str]:
    """Samples to show, and by which rule: those where the full BTI-Net gains most over the mean of the other joint
    methods (of all others where none is joint); evenly spaced by IoU where there is nothing to compare with."""
    joint = [run for run in others if run.test["y_pred"].null_count == 0] or others
    if joint:
        means = {
            key: np.mean([rows[run.key["run_id"]][key]["iou"] for run in joint if key in rows[run.key["run_id"]]])
            for key in mine
        }
        gains = {key: float(mine[key]["iou"] - means[key]) for key in mine if mine[key]["iou"] > GOOD_IOU}
        if gains:
            chosen = sorted(gains, key=lambda key: (-gains[key], key))[:ROWS]
            which = "the other joint methods" if joint is not others else "the other methods"
            return chosen, f"the largest gains over the mean of {which}, where IoU > {GOOD_IOU}"
    ordered = sorted(mine, key=lambda key: (-mine[key]["iou"], key))
    places = np.linspace(0, len(ordered) - 1, min(ROWS, len(ordered))).round().astype(int)
    return [ordered[place] for place in places], "from the highest IoU to the lowest, evenly spaced"


def _name(run: EvaluatedRun, among: Sequence[EvaluatedRun]) -> str:
    several = sum(other.key["method"] == run.key["method"] for other in among) > 1
    return f"{run.key['method']} {run.key['variant']}" if several else str(run.key["method"])


def _row(photo: Row, predictions: list[Row | None]) -> PictureRow:
    truth = _mask(photo["mask_png"])
    cells = [Cell(), Cell(_outline(truth), of_truth=True)]
    for row in predictions:
        if row is None or row["mask_png"] is None:
            cells.append(Cell(text="–"))
        else:
            cells.append(Cell(_outline(_mask(row["mask_png"])), text=f"IoU {row['iou']:.2f}"))
    picture = "data:image/jpeg;base64," + base64.b64encode(photo["image_jpeg"]).decode()
    return PictureRow(photo["sample_id"], picture, len(truth), cells)


def _mask(png: bytes) -> NDArray[np.bool_]:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image, bool)


def _outline(mask: NDArray[np.bool_]) -> str:
    """The mask's boundary as an SVG path."""
    padded = np.pad(mask.astype(np.float64), 1)
    lines: list[Any] = contourpy.contour_generator(z=padded).lines(0.5)  # type: ignore[assignment]
    # a pixel's centre is at its index plus a half; the padding moved everything by one
    return "".join("M" + "L".join(f"{x - 0.5:.1f} {y - 0.5:.1f}" for x, y in line) + "Z" for line in lines)

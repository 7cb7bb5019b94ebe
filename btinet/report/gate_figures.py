"""Figures about what the gates do (paper Figs. 2, A2, A8, A11, A15, A18)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from btinet.evaluation.schema import LEVELS
from btinet.report.detection_figures import gated_settings, of, title
from btinet.report.drawing import COLOURS, INK, Drawing, legend, panels

DIRECTIONS = {"seg_to_clf": "segmentation → classification", "clf_to_seg": "classification → segmentation"}

DOTS = {"s": 11, "linewidths": 0}
MAX_DOTS = 2000
"""More dots than this in a panel are drawn as an image within the SVG: as shapes they would slow the page."""


def gate_figures(tables: dict[str, pa.Table]) -> list[Drawing]:
    """Every figure, setting by setting."""
    drawings = []
    for number, setting in enumerate(gated_settings(tables)):
        where = title(setting)
        drawings.append(_tim(of(tables["tim_magnitude"], setting), f"tim{number}", where))
        points = of(tables["scatter"], setting)
        for run_id in pc.unique(points["run_id"]).to_pylist()[:1]:
            of_run = points.filter(pc.field("run_id") == run_id)
            rho = tables["correlations_runs"].filter(pc.field("run_id") == run_id)
            seed = of_run["seed"][0].as_py()
            drawings += [
                _against_iou(of_run, rho, f"iou{number}", f"{where} · seed {seed}"),
                _against_confidence(of_run, rho, f"conf{number}", f"{where} · seed {seed}"),
            ]
    return drawings


def _tim(rows: pa.Table, name: str, where: str) -> Drawing:
    """Figures 2, A11, A18."""
    values = {(row["direction"], row["level"], row["group"]): row for row in rows.to_pylist() if row["norm"] == "l1"}
    with panels(2, 1, (3.9, 2.9)) as (figure, axes):
        for axis, (direction, label) in zip(axes, DIRECTIONS.items(), strict=True):
            for offset, group, colour in ((-0.2, "easy", COLOURS[2]), (0.2, "hard", COLOURS[1])):
                found = [values[direction, level, group] for level in LEVELS]
                heights = [np.nan if row["magnitude"] is None else row["magnitude"] for row in found]
                errors = [row["magnitude_std"] or 0 for row in found]
                places = np.arange(len(LEVELS)) + offset
                style = {"ecolor": INK, "capsize": 2}
                axis.bar(
                    places, heights, 0.38, color=colour, yerr=errors, error_kw=style, label=f"{group} quartile by IoU"
                )
            axis.set_xticks(range(len(LEVELS)), LEVELS)
            axis.set_title(label, loc="left")
        axes[0].set_ylabel("mean |Δ| per element")
        legend(figure)
        return Drawing(name, f"How much the tasks modulate each other, {where} (Figures 2, A11, A18)", figure)


def _against_iou(points: pa.Table, correlations: pa.Table, name: str, where: str) -> Drawing:
    """delta over IoU, coloured by Monte Carlo dropout's score."""
    points = points.filter(pc.field("has_mask"))
    with panels(4, 1, (2.75, 2.7)) as (figure, axes):
        for axis, level in zip(axes, LEVELS, strict=True):
            of_level = points.filter(pc.field("level") == level)
            mc = of_level["mc"].cast(pa.float64())
            colours = {"color": COLOURS[0]} if mc.null_count else {"c": mc.to_numpy(), "cmap": "viridis"}
            style: dict[str, Any] = {**DOTS, "rasterized": len(of_level) > MAX_DOTS, **colours}
            dots = axis.scatter(of_level["iou"].to_numpy(), of_level["delta"].to_numpy(), **style)
            axis.set_title(f"{level}  {_rho(correlations, 'iou', level)}", loc="left", fontsize=9)
            axis.set_xlabel("IoU")
        axes[0].set_ylabel("δ = w_clf − w_seg")
        if "c" in colours:
            bar = figure.colorbar(dots, ax=axes[-1], pad=0.02)
            bar.set_label("MC variance")
            bar.outline.set_visible(False)
        return Drawing(name, f"δ against IoU, images with a lesion, {where} (Figures A2, A8, A15)", figure)


def _against_confidence(points: pa.Table, correlations: pa.Table, name: str, where: str) -> Drawing:
    """delta over confidence, coloured by whether the class is right."""
    with panels(4, 1, (2.75, 2.7)) as (figure, axes):
        for axis, level in zip(axes, LEVELS, strict=True):
            of_level = points.filter(pc.field("level") == level)
            for is_correct, colour, label in ((True, COLOURS[2], "class right"), (False, "#d6453d", "class wrong")):
                part = of_level.filter(pc.equal(of_level["correct"], is_correct))
                style: dict[str, Any] = {**DOTS, "rasterized": len(of_level) > MAX_DOTS, "color": colour}
                axis.scatter(part["conf"].to_numpy(), part["delta"].to_numpy(), label=label, **style)
            axis.set_title(f"{level}  {_rho(correlations, 'conf', level)}", loc="left", fontsize=9)
            axis.set_xlabel("confidence")
        axes[0].set_ylabel("δ = w_clf − w_seg")
        legend(figure)
        return Drawing(name, f"δ against confidence, all test images, {where} (Figures A2, A8, A15)", figure)


def _rho(correlations: pa.Table, other: str, level: str) -> str:
    """Spearman's rho of delta and ``other`` as the analysis has it, where it has it."""
    for row in correlations.to_pylist():
        if {row["x"], row["y"]} == {"delta", other} and row["level"] == level and row["rho"] is not None:
            return f"ρ = {row['rho']:.2f}, p = {row['p']:.2g}".replace("-", "−")
    return ""

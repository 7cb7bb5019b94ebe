"""Figures about finding failures (paper Figs. 3, 4, A1, A3 to A7, A9, A10, A12 to A14, A16, A17; risk and coverage)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes

from btinet.analysis.runs import SETTING
from btinet.evaluation.schema import LEVELS
from btinet.report.drawing import COLOURS, INK, Drawing, legend, panels
from btinet.report.tables import signal_label

TASKS = {"seg": "failed segmentations", "clf": "wrong classes"}
PANEL = (3.9, 3.1)
BLUES = ("#8fc1ea", "#5ba3dc", "#2f7fc4", "#15588f")
"""D1 to D4."""

Setting = tuple[Any, ...]
Row = dict[str, Any]


class Line(NamedTuple):
    """A curve to draw: of which score, and how."""

    signal: str
    level: str | None
    label: str
    colour: str
    style: str = "-"


def gated_settings(tables: dict[str, pa.Table]) -> list[Setting]:
    """Settings of methods with gates; where there is the full BTI-Net, not its variants."""
    rows = [row for row in tables["table2"].to_pylist() if row["signal"] == "w_seg" and row["auroc"] is not None]
    found = list(dict.fromkeys(tuple(row[name] for name in SETTING) for row in rows))
    return [setting for setting in found if setting[2] == "full"] or found


def of(table: pa.Table, setting: Setting) -> pa.Table:
    """The setting's rows."""
    for name, value in zip(SETTING, setting, strict=True):
        table = table.filter(pc.equal(table[name], value))
    return table


def title(setting: Setting) -> str:
    return " · ".join(setting[:3])


def detection_figures(tables: dict[str, pa.Table]) -> list[Drawing]:
    """Every figure, setting by setting."""
    drawings = []
    for number, setting in enumerate(gated_settings(tables)):
        of_setting = {
            name: of(tables[name], setting)
            for name in ("table2", "table3", "table_a2", "table_a3", "table_a4", "curves")
        }
        printed = of(tables["comparison"], setting)
        where = title(setting)
        drawings += [
            _wseg(of_setting, printed, f"wseg{number}", where),
            _best_of_level(of_setting, f"best{number}", where),
            _curves(
                of_setting,
                "roc",
                {"seg": _w_seg_lines(), "clf": _chosen_lines(of_setting, "clf")},
                f"roc{number}",
                f"ROC curves, {where}: w_seg at every level for failed segmentations, and the best signal for wrong "
                "classes, beside Monte Carlo dropout (Figures 4, A5, A12)",
            ),
            _curves(
                of_setting,
                "pr",
                {task: _chosen_lines(of_setting, task) for task in TASKS},
                f"pr{number}",
                f"Precision and recall of the best signal, {where}; dotted: chance (Figures 3, A6, A13)",
            ),
            _curves(
                of_setting,
                "roc",
                {"seg": _combined_lines()},
                f"combined{number}",
                f"ROC curves of −δ combined over levels, {where} (Figures A4, A10, A17)",
            ),
            _heatmaps(of_setting, f"heat{number}", where),
            _curves(
                of_setting,
                "risk_coverage",
                {task: _chosen_lines(of_setting, task) for task in TASKS},
                f"risk{number}",
                f"Risk and coverage, {where}: share of failures among the samples that are kept when those with the "
                "highest scores are refused; dotted: refusing none (beyond the paper)",
            ),
        ]
    return drawings


def _wseg(tables: dict[str, pa.Table], printed: pa.Table, name: str, where: str) -> Drawing:
    """Table 2's AUROC: bars for w_seg per level, a line for Monte Carlo dropout, diamonds for the paper."""
    rows = {row["level"]: row for row in tables["table2"].to_pylist()}
    paper = {row["quantity"]: row["paper"] for row in printed.to_pylist() if row["artefact"] == "2"}
    with panels(1, 1, (4.6, 3.1)) as (figure, (axis,)):
        _bars(axis, LEVELS, [rows[level] for level in LEVELS], COLOURS[0], "w_seg")
        _reference(axis, rows[None])
        if paper:
            values = [paper[f"{level} auroc"] for level in LEVELS]
            axis.plot(LEVELS, values, "D", color=INK, markerfacecolor="none", label="w_seg, paper")
        legend(figure, 2)
        return Drawing(name, f"AUROC of w_seg for failed segmentations by level, {where} (Table 2)", figure)


def _best_of_level(tables: dict[str, pa.Table], name: str, where: str) -> Drawing:
    """Figures A1, A7, A14."""
    with panels(2, 1, PANEL) as (figure, axes):
        for axis, (task, table) in zip(axes, (("seg", "table_a3"), ("clf", "table_a4")), strict=True):
            rows = tables[table].to_pylist()
            best = {row["level"]: row for row in reversed(rows) if row["best_of_level"]}
            mc = next(row for row in rows if row["signal"] == "mc")
            if not best:
                continue
            levels = [level for level in LEVELS if level in best]
            _bars(axis, levels, [best[level] for level in levels], COLOURS[2 if task == "clf" else 0], None)
            for level, row in best.items():
                axis.annotate(
                    signal_label(row["signal"]), (level, 0.02), ha="center", va="bottom", color="white", fontsize=9
                )
            _reference(axis, mc)
            axis.set_title(TASKS[task], loc="left")
        legend(figure)
        caption = f"The best signal of each level (oracle: chosen on test), {where} (Figures A1, A7, A14)"
        return Drawing(name, caption, figure)


def _heatmaps(tables: dict[str, pa.Table], name: str, where: str) -> Drawing:
    """Figures A3, A9, A16: AUROC for segmentation, average precision for classification."""
    with panels(2, 1, (4.3, 2.5)) as (figure, axes):
        parts = (("seg", "table_a3", "auroc", "AUROC"), ("clf", "table_a4", "auprc", "average precision"))
        for axis, (task, table, metric, label) in zip(axes, parts, strict=True):
            rows = [row for row in tables[table].to_pylist() if row["level"]]
            signals = list(dict.fromkeys(row["signal"] for row in rows))
            values = {(row["signal"], row["level"]): row[metric] for row in rows}
            grid = np.array([[values[signal, level] for level in LEVELS] for signal in signals], np.float64)
            if not np.isfinite(grid).any():
                continue
            limits = (0, 1) if metric == "auroc" else (0, np.nanmax(grid))
            axis.imshow(grid, cmap="RdYlBu_r", vmin=limits[0], vmax=limits[1], aspect="auto", alpha=0.75)
            for (row, column), value in np.ndenumerate(grid):
                if np.isfinite(value):
                    axis.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=9, color="black")
            axis.set_xticks(range(len(LEVELS)), LEVELS)
            axis.set_yticks(range(len(signals)), [signal_label(signal) for signal in signals])
            axis.grid(False)
            axis.tick_params(length=0)
            axis.set_title(f"{TASKS[task]}, {label}", loc="left")
        return Drawing(name, f"Every signal at every level, {where} (Figures A3, A9, A16)", figure)


def _curves(
    tables: dict[str, pa.Table], curve: str, lines: dict[str, Sequence[Line]], name: str, caption: str
) -> Drawing:
    """A panel a task; a thin line a run."""
    labels = {
        "roc": ("false positive rate", "true positive rate"),
        "pr": ("recall", "precision"),
        "risk_coverage": ("coverage", "risk"),
    }
    with panels(len(lines), 1, PANEL) as (figure, axes):
        for axis, (task, of_task) in zip(axes, lines.items(), strict=True):
            points = tables["curves"]
            points = points.filter((pc.field("curve") == curve) & (pc.field("task") == task))
            for line in of_task:
                _line(axis, points, line)
            share = _failure_share(tables["table2" if task == "seg" else "table3"])
            if curve == "roc":
                axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
            elif share is not None and axis.has_data():
                axis.axhline(share, color=INK, linewidth=0.8, linestyle=":")
            axis.set_xlim(0, 1)
            axis.set_ylim(0, None if curve == "risk_coverage" else 1.02)
            axis.set_xlabel(labels[curve][0])
            axis.set_ylabel(labels[curve][1])
            axis.set_title(TASKS[task], loc="left")
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=8, loc="best")
        return Drawing(name, caption, figure)


def _line(axis: Axes, points: pa.Table, line: Line) -> None:
    level = pc.field("level").is_null() if line.level is None else pc.field("level") == line.level
    of_score = points.filter((pc.field("signal") == line.signal) & level)
    for number, run_id in enumerate(pc.unique(of_score["run_id"]).to_pylist()):
        of_run = of_score.filter(pc.field("run_id") == run_id)
        axis.plot(
            of_run["x"].to_numpy(),
            of_run["y"].to_numpy(),
            color=line.colour,
            linestyle=line.style,
            linewidth=1.3,
            alpha=0.85,
            label=line.label if number == 0 else None,
        )


def _w_seg_lines() -> list[Line]:
    levels = [Line("w_seg", level, f"w_seg {level}", colour) for level, colour in zip(LEVELS, BLUES, strict=True)]
    return [*levels, Line("mc", None, "MC dropout", COLOURS[1], "--")]


def _chosen_lines(tables: dict[str, pa.Table], task: str) -> list[Line]:
    """The best signal on test, the one that validation chooses, Monte Carlo dropout, and the task's own confidence."""
    table, prefix = (tables["table_a2"], "best") if task == "seg" else (tables["table3"], "upa")
    chosen = {row["detector"]: row for row in table.to_pylist() if row["signal"]}
    lines = []
    for split, colour in (("oracle", COLOURS[0]), ("validation", COLOURS[2])):
        row = chosen.get(f"{prefix}_{split}")
        if row:
            how = "oracle" if split == "oracle" else "chosen on validation"
            style = "-" if split == "oracle" else "-."
            label = f"{signal_label(row['signal'])} {row['level']} ({how})"
            lines.append(Line(row["signal"], row["level"], label, colour, style))
    lines.append(Line("mc", None, "MC dropout", COLOURS[1], "--"))
    if task == "seg":
        return [
            *lines,
            Line("mc_lesion", None, "MC dropout, over the lesion", COLOURS[3], "--"),
            Line("one_minus_mask_conf", None, "1 − mask confidence", COLOURS[4], ":"),
        ]
    return [*lines, Line("one_minus_conf", None, "1 − conf", COLOURS[3], "--")]


def _combined_lines() -> list[Line]:
    return [
        Line("neg_delta_mean", None, "mean", COLOURS[0]),
        Line("neg_delta_weighted_oracle", None, "weighted by AUROC (oracle)", COLOURS[3]),
        Line("neg_delta_weighted_validation", None, "weighted by AUROC on validation", COLOURS[2], "-."),
        Line("mc", None, "MC dropout", COLOURS[1], "--"),
    ]


def _failure_share(table: pa.Table) -> float | None:
    row = table.slice(0, 1).to_pylist()[0]
    return row["n_failures"] / row["n"] if row["n"] and row["n_failures"] is not None else None


def _bars(axis: Axes, levels: Sequence[str], rows: Sequence[Row], colour: str, label: str | None) -> None:
    heights = [np.nan if row["auroc"] is None else row["auroc"] for row in rows]
    errors = [row["auroc_std"] or 0 for row in rows]
    style = {"ecolor": INK, "capsize": 3}
    axis.bar(levels, heights, width=0.6, color=colour, yerr=errors, error_kw=style, label=label)
    axis.set_ylim(0, 1)
    axis.set_ylabel("AUROC")


def _reference(axis: Axes, mc: Row) -> None:
    value, std = mc["auroc"], mc["auroc_std"] or 0
    if value is not None:
        axis.axhline(value, color=COLOURS[1], linestyle="--", label="MC dropout")
        axis.axhspan(value - std, value + std, color=COLOURS[1], alpha=0.2, linewidth=0)
    axis.axhline(0.5, color=INK, linewidth=0.8, linestyle=":", label="chance")

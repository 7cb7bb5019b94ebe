"""Figures as inline SVG: text stays text, and ink takes the page's colours, in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from btinet.analysis.runs import SETTING
from btinet.evaluation.schema import LEVELS

INK, FAINT = "#010203", "#040506"
"""Stand-ins that become CSS colours in the page."""
COLOURS = ("#3f8fd2", "#e08a2e", "#35a07c", "#c565ad", "#8c7fe0", "#a59a2c")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans"],
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}
NOT_CURVES = ("run_id", "stage", "epoch")
HISTOGRAM_BINS = 24
FIRST_CURVES = ("val_", "train_")
"""Curves are shown in the order of these prefixes, then the rest."""


def wseg_auroc(table2: pa.Table, comparison: pa.Table) -> Markup | None:
    """Table 2's AUROC: bars for w_seg per level, a line for Monte Carlo dropout, diamonds for the paper."""
    settings = _settings(table2.filter((pc.field("signal") == "w_seg") & pc.field("auroc").is_valid()))
    if not settings:
        return None
    columns = min(3, len(settings))
    with _figure(columns, -(-len(settings) // columns), panel=(3.7, 2.7)) as (figure, axes):
        for axis, setting in zip(axes, settings, strict=False):
            rows = _of(table2, setting)
            printed = {row["quantity"]: row["paper"] for row in _of(comparison, setting) if row["artefact"] == "2"}
            _wseg_panel(axis, rows, printed)
            axis.set_title(_title(setting), loc="left")
        handles = {
            label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=len(handles))
        return _svg(figure, "wseg", "AUROC of w_seg per decoder level against Monte Carlo dropout")


def training_curves(epochs: pa.Table, runs: pa.Table) -> list[tuple[str, Markup]]:
    """For each setting, a panel per quantity and a line per seed: (title, figure).

    Args:
        epochs: run_id, stage, epoch and numeric columns.
        runs: a row per run, with the columns of :data:`btinet.analysis.runs.RUN`.
    """
    curves = [name for name in epochs.column_names if name not in NOT_CURVES]
    curves = [name for name in curves if _is_numeric(epochs[name].type) and epochs[name].null_count < len(epochs)]
    curves.sort(key=lambda name: next((i for i, p in enumerate(FIRST_CURVES) if name.startswith(p)), 9))
    names = [name for name in SETTING if name != "stage"]
    groups: dict[tuple[Any, ...], dict[int, str]] = {}
    for run in runs.to_pylist():
        groups.setdefault(tuple(run[name] for name in names), {})[run["seed"]] = run["run_id"]
    figures = []
    for number, (setting, run_ids) in enumerate(groups.items()):
        history = epochs.filter(pc.is_in(epochs["run_id"], pa.array(list(run_ids.values()))))
        if len(history):
            title = " · ".join(setting)
            figures.append((title, _curves(history, run_ids, curves, title, f"curves{number}")))
    return figures


def histograms(groups: dict[str, NDArray[np.floating]], quantity: str, name: str) -> Markup | None:
    """A panel per group, all over the same bins and on the same scale; None where there is nothing to count.

    Args:
        groups: title of a panel -> values [n].
        quantity: what the values are.
        name: of the figure within its page.
    """
    shown = {title: values for title, values in groups.items() if len(values)}
    if not shown:
        return None
    bins = np.histogram_bin_edges(np.concatenate(list(shown.values())), HISTOGRAM_BINS)
    shares = {title: np.histogram(values, bins)[0] * 100 / len(values) for title, values in shown.items()}
    highest = max(share.max() for share in shares.values())
    columns = min(4, len(shown))
    with _figure(columns, -(-len(shown) // columns), panel=(2.75, 1.9)) as (figure, axes):
        for axis, (title, share) in zip(axes, shares.items(), strict=False):
            axis.stairs(share, bins, fill=True, color=COLOURS[0])
            axis.set_xlim(bins[0], bins[-1])
            axis.set_ylim(0, 1.05 * highest)
            axis.set_title(f"{title} ({len(shown[title]):,})", loc="left")
        figure.supxlabel(quantity, fontsize=10)
        figure.supylabel("% of the class's images", fontsize=10)
        return _svg(figure, name, f"Histogram by class: {quantity}")


def _curves(history: pa.Table, run_ids: dict[int, str], curves: list[str], title: str, name: str) -> Markup:
    """Stage 2 is drawn to the right of the longest stage 1, beyond a dotted line."""
    shown = [curve for curve in curves if history[curve].null_count < len(history)]
    first = history.filter(pc.field("stage") == 1)["epoch"]
    second = history.filter(pc.field("stage") == 2)["epoch"]
    shift = len(pc.unique(first))
    end = max([*first.to_pylist(), *(epoch + shift for epoch in second.to_pylist())])
    with _figure(4, -(-len(shown) // 4), panel=(2.75, 1.9)) as (figure, axes):
        for axis, curve in zip(axes, shown, strict=False):
            for (seed, run_id), colour in zip(run_ids.items(), COLOURS * len(run_ids), strict=False):
                for stage in (1, 2):
                    rows = history.filter((pc.field("run_id") == run_id) & (pc.field("stage") == stage))
                    epoch, value = (np.asarray(rows[column].cast(pa.float64())) for column in ("epoch", curve))
                    order = np.argsort(epoch)
                    label = f"seed {seed}" if stage == 1 else None
                    x = epoch[order] + (shift if stage == 2 else 0)
                    axis.plot(x, value[order], color=colour, marker=".", markersize=3, linewidth=1.2, label=label)
            if len(first) and len(second):
                axis.axvline(pc.max(first).as_py() + 0.5, color=INK, linewidth=0.8, linestyle=":")
            axis.set_xlim(pc.min(history["epoch"]).as_py() - 0.5, end + 0.5)
            axis.set_title(curve.replace("_", " "), loc="left")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=8)
        return _svg(figure, name, f"Training curves of {title}")


def _wseg_panel(axis: Axes, rows: list[dict[str, Any]], printed: dict[str, float]) -> None:
    scores = {row["level"]: row for row in rows}
    heights = [_or_nan(scores[level]["auroc"]) for level in LEVELS]
    errors = [scores[level]["auroc_std"] or 0 for level in LEVELS]
    axis.bar(
        LEVELS,
        heights,
        width=0.6,
        color=COLOURS[0],
        yerr=errors,
        error_kw={"ecolor": INK, "capsize": 3},
        label="w_seg",
    )
    mc, mc_std = scores[None]["auroc"], scores[None]["auroc_std"]
    if mc is not None:
        axis.axhline(mc, color=COLOURS[1], linestyle="--", label="MC dropout")
        axis.axhspan(mc - (mc_std or 0), mc + (mc_std or 0), color=COLOURS[1], alpha=0.2, linewidth=0)
    if printed:
        paper = [printed[f"{level} auroc"] for level in LEVELS]
        axis.plot(LEVELS, paper, "D", color=INK, markerfacecolor="none", label="w_seg, paper")
    axis.axhline(0.5, color=INK, linewidth=0.8, linestyle=":", label="chance")
    axis.set_ylim(0, 1)
    axis.set_ylabel("AUROC")


@contextmanager
def _figure(columns: int, rows: int, panel: tuple[float, float]) -> Iterator[tuple[Figure, list[Axes]]]:
    """A grid of panels, each ``panel`` inches wide and high; left-over panels are invisible."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(columns * panel[0], rows * panel[1] + 0.3), layout="constrained")
        figure.patch.set_visible(False)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis in axes:
            axis.patch.set_visible(False)
        yield figure, axes


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an <svg> element; ``name`` keeps its ids apart from those of the page's other figures."""
    for axis in figure.axes:
        axis.set_visible(axis.has_data())
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    width = round(figure.get_figwidth() * 96)
    head = f'<svg role="img" aria-label="{escape(description)}" style="width:{width}px"'
    return Markup(re.sub(r'<svg( (width|height)="[^"]*")*', head, svg, count=1))


def _settings(table: pa.Table) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(tuple(row[name] for name in SETTING) for row in table.to_pylist()))


def _of(table: pa.Table, setting: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [row for row in table.to_pylist() if tuple(row[name] for name in SETTING) == setting]


def _title(setting: tuple[Any, ...]) -> str:
    dataset, method, variant, *_ = setting
    return f"{dataset} · {method} · {variant}"


def _is_numeric(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_floating(type_)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value

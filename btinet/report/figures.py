"""Figures about a dataset and about a training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from btinet.analysis.runs import SETTING
from btinet.report.drawing import COLOURS, INK, Drawing, legend, panels, svg

NOT_CURVES = ("run_id", "stage", "epoch")
HISTOGRAM_BINS = 24
FIRST_CURVES = ("val_", "train_")
"""Curves are shown in the order of these prefixes, then the rest."""


def training_curves(epochs: pa.Table, runs: pa.Table) -> list[Drawing]:
    """For each setting, a panel per quantity and a line per seed.

    Args:
        epochs: run_id, stage, epoch and numeric columns.
        runs: a row per run, with the columns of :data:`btinet.analysis.runs.RUN`.
    """
    curves = curve_names(epochs)
    names = [name for name in SETTING if name != "stage"]
    groups: dict[tuple[Any, ...], dict[int, str]] = {}
    for run in runs.to_pylist():
        groups.setdefault(tuple(run[name] for name in names), {})[run["seed"]] = run["run_id"]
    figures = []
    for number, (setting, run_ids) in enumerate(groups.items()):
        history = epochs.filter(pc.is_in(epochs["run_id"], pa.array(list(run_ids.values()))))
        if len(history):
            figures.append(_curves(history, run_ids, curves, " · ".join(setting), f"curves{number}"))
    return figures


def curve_names(epochs: pa.Table) -> list[str]:
    """The numeric columns that have values, in the order in which they are shown."""
    names = [name for name in epochs.column_names if name not in NOT_CURVES]
    names = [name for name in names if _is_numeric(epochs[name].type) and epochs[name].null_count < len(epochs)]
    return sorted(names, key=lambda name: next((i for i, p in enumerate(FIRST_CURVES) if name.startswith(p)), 9))


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
    with panels(columns, -(-len(shown) // columns), panel=(2.75, 1.9)) as (figure, axes):
        for axis, (title, share) in zip(axes, shares.items(), strict=False):
            axis.stairs(share, bins, fill=True, color=COLOURS[0])
            axis.set_xlim(bins[0], bins[-1])
            axis.set_ylim(0, 1.05 * highest)
            axis.set_title(f"{title} ({len(shown[title]):,})", loc="left")
        figure.supxlabel(quantity, fontsize=10)
        figure.supylabel("% of the class's images", fontsize=10)
        return svg(figure, name, f"Histogram by class: {quantity}")


def _curves(history: pa.Table, run_ids: dict[int, str], curves: list[str], title: str, name: str) -> Drawing:
    """Stage 2 is drawn to the right of the longest stage 1, beyond a dotted line."""
    shown = [curve for curve in curves if history[curve].null_count < len(history)]
    first = history.filter(pc.field("stage") == 1)["epoch"]
    second = history.filter(pc.field("stage") == 2)["epoch"]
    shift = len(pc.unique(first))
    end = max([*first.to_pylist(), *(epoch + shift for epoch in second.to_pylist())])
    with panels(4, -(-len(shown) // 4), panel=(2.75, 1.9)) as (figure, axes):
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
        legend(figure)
        return Drawing(name, f"Training curves of {title}", figure)


def _is_numeric(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_floating(type_)

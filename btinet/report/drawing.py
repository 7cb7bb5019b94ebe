"""How figures are drawn: Matplotlib, one style, and SVG whose ink takes the page's colours, in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT = "#1c2126", "#b9c1c9"
"""As in the page on white; in its SVG they are CSS colours."""
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


@dataclass(frozen=True)
class Drawing:
    """A figure of the page."""

    name: str
    """Unique within the page."""
    caption: str
    figure: Figure

    @property
    def svg(self) -> Markup:
        return svg(self.figure, self.name, self.caption)


@contextmanager
def panels(columns: int, rows: int, panel: tuple[float, float]) -> Iterator[tuple[Figure, list[Axes]]]:
    """A grid of panels, each ``panel`` inches wide and high; left-over panels are invisible."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(columns * panel[0], rows * panel[1] + 0.3), layout="constrained")
        figure.patch.set_visible(False)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis in axes:
            axis.patch.set_visible(False)
        yield figure, axes


def legend(figure: Figure, columns: int = 8) -> None:
    """One legend above all panels, each entry once."""
    handles = {
        label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=min(columns, len(handles)))


def svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an <svg> element; ``name`` keeps its ids apart from those of the page's other figures."""
    for axis in figure.axes:
        axis.set_visible(axis.has_data())
    stream = io.StringIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", dpi=150, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    width = round(figure.get_figwidth() * 96)
    head = f'<svg role="img" aria-label="{escape(description)}" style="width:{width}px"'
    return Markup(re.sub(r'<svg( (width|height)="[^"]*")*', head, text, count=1))

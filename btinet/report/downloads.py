"""A shown table to take away: the numbers behind it as CSV and Parquet, and what is shown as LaTeX."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.csv import write_csv

from btinet.report.tables import Cell, HtmlTable

LATEX_SPECIALS = {
    "\\": r"\textbackslash{}",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "δ": r"$\delta$",
    "ρ": r"$\rho$",
    "τ": r"$\tau$",
    "✓": r"$\checkmark$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
}


class Link(NamedTuple):
    label: str
    file: str
    """Name under which it is saved."""
    href: str
    """data: URI"""


def downloadable(table: HtmlTable, tables: dict[str, pa.Table]) -> HtmlTable:
    """The table with links to itself; as it is where it has no name."""
    if not table.name:
        return table
    tex = Link("LaTeX", f"{table.latex_name or table.name}.tex", _data_uri("application/x-tex", latex(table).encode()))
    return replace(table, links=[*data_links(table.name, tables[table.name]), tex])


def data_links(name: str, table: pa.Table) -> list[Link]:
    """A table at full precision, as CSV and Parquet."""
    csv, parquet = io.BytesIO(), io.BytesIO()
    write_csv(table, csv)
    pq.write_table(table, parquet, compression="zstd")
    return [
        Link("CSV", f"{name}.csv", _data_uri("text/csv", csv.getvalue())),
        Link("Parquet", f"{name}.parquet", _data_uri("application/vnd.apache.parquet", parquet.getvalue())),
    ]


def latex(table: HtmlTable) -> str:
    """The table as a ``tabular`` for the booktabs package, with its caption as a comment."""
    columns = "l" * len(table.heads) + "".join(_alignment(table, index) for index in range(len(table.columns)))
    lines = [f"% {line}" for line in table.caption.splitlines()]
    lines += ["% needs \\usepackage{booktabs,amssymb}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    if table.spans:
        spans = [rf"\multicolumn{{{width}}}{{c}}{{{_escaped(label)}}}" for label, width in table.spans]
        lines.append(" & ".join([*[""] * len(table.heads), *spans]) + r" \\")
    lines.append(" & ".join(map(_escaped, [*table.heads, *table.columns])) + r" \\")
    lines.append(r"\midrule")
    lines += [" & ".join([*map(_latex_head, heads), *map(_latex_cell, cells)]) + r" \\" for heads, cells in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _alignment(table: HtmlTable, column: int) -> str:
    return "l" if table.rows and table.rows[0][1][column].words else "r"


def _latex_head(cell: Cell) -> str:
    return _escaped(f"{cell.text} ({cell.beneath})" if cell.beneath else cell.text)


def _latex_cell(cell: Cell) -> str:
    text = _escaped(" ".join(filter(None, (cell.text, cell.spread))))
    return rf"\textbf{{{text}}}" if cell.strong else text


def _escaped(text: str) -> str:
    return re.sub("|".join(map(re.escape, LATEX_SPECIALS)), lambda found: LATEX_SPECIALS[found[0]], text)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

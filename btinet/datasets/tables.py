"""Reads the tables that list a dataset's images: CSV and Parquet, every cell as text."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Collection
from typing import NamedTuple

import pyarrow as pa

from btinet.datasets.files import shown
from btinet.datasets.sample import Check, Finding
from btinet.errors import InputError
from btinet.storage import Storage

SEPARATORS = ",;\t"
"""What may stand between the cells of a CSV file: spreadsheets write semicolons where commas are decimal marks."""


class Row(NamedTuple):
    where: str
    """The file and the row's number as a spreadsheet counts: the header is row 1."""
    number: int
    cells: dict[str, str]
    """Column -> value, composed (Unicode NFC) and without surrounding space; empty where nothing is given."""


class Table(NamedTuple):
    columns: tuple[str, ...]
    """All columns of the file, in lower case."""
    rows: list[Row]
    findings: list[Finding]
    """The rows that could not be read."""


def read_table(file: Storage, columns: Collection[str]) -> Table:
    """Read those of ``columns`` that a file has.

    Args:
        file: ``.parquet``, else CSV in UTF-8 with a header.

    Raises:
        InputError: the file cannot be read as such a table.
    """
    return _read_parquet(file, columns) if file.name.endswith(".parquet") else _read_csv(file, columns)


def _read_csv(file: Storage, columns: Collection[str]) -> Table:
    try:
        text = file.read_bytes().decode("utf-8-sig")  # spreadsheets may put a byte order mark first
        separator = max(SEPARATORS, key=text.partition("\n")[0].count)
        # pyarrow's CSV reader would drop short rows and blank lines, and the rows' numbers with them
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(file)}: is not UTF-8 ({error}): save it as 'CSV UTF-8'") from error
    except csv.Error as error:
        raise InputError(f"{shown(file)}: is not valid CSV ({error}): check its quotes") from error
    header = _header(file, lines[0] if lines else [])
    table = Table(header, [], [])
    for number, line in enumerate(lines[1:], 2):
        where = f"{shown(file)} row {number}"
        if not any(cell.strip() for cell in line):
            continue
        if len(line) != len(header):
            message = f"has {len(line)} cells but the header has {len(header)}: quote cells that contain {separator!r}"
            table.findings.append(Finding(Check.METADATA, "error", where, message))
            continue
        cells = {name: _clean(cell) for name, cell in zip(header, line, strict=True) if name in columns}
        table.rows.append(Row(where, number, cells))
    return table


def _read_parquet(file: Storage, columns: Collection[str]) -> Table:
    try:
        content = file.read_table()
        header = _header(file, content.column_names)
        texts = {
            name: [_clean(cell or "") for cell in column.cast(pa.string()).to_pylist()]
            for name, column in zip(header, content.columns, strict=True)
            if name in columns
        }
    except pa.ArrowException as error:
        message = f"{shown(file)}: cannot be read ({error}): write it as Parquet with text columns"
        raise InputError(message) from error
    rows = []
    for number in range(2, content.num_rows + 2):
        cells = {name: values[number - 2] for name, values in texts.items()}
        rows.append(Row(f"{shown(file)} row {number}", number, cells))
    return Table(header, rows, [])


def _header(file: Storage, names: list[str]) -> tuple[str, ...]:
    header = tuple(name.strip().lower() for name in names)
    if repeated := sorted({name for name in header if name and header.count(name) > 1}):
        raise InputError(f"{shown(file)}: column {repeated[0]!r} is there twice: remove or rename one")
    return header


def _clean(cell: str) -> str:
    return unicodedata.normalize("NFC", cell.strip())

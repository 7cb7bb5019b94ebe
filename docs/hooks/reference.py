"""Reference pages that are made from the code: the command line, and the Parquet tables."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import typer
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from btinet.analysis.schemas import CONTRACTS
from btinet.cli import app
from flows.full_experiment import main as full_experiment
from flows.tune import main as tune

DESCRIBED: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "columns.yaml").read_text())
SUFFIXES = {
    "_low": "lower end of the 95 % interval",
    "_high": "upper end",
    "_std": "standard deviation over seeds",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "reference/cli.md", content=cli_page()))
    files.append(File.generated(config, "reference/tables.md", content=tables_page()))
    return files


def cli_page() -> str:
    """Every command with its arguments and options."""
    commands = {"btinet": app}
    flows: dict[str, Callable[..., None]] = {"full_experiment": full_experiment, "tune": tune}
    for name, main in flows.items():
        flow = commands[f"python -m flows.{name}"] = typer.Typer(add_completion=False)
        flow.command()(main)
    head = "# Command line\n\nMade from the code. `btinet COMMAND --help` prints the same.\n\n"
    return head + "".join(_with_lower_headings(_described(typer_app, name)) for name, typer_app in commands.items())


def _described(typer_app: typer.Typer, name: str) -> str:
    command = typer.main.get_command(typer_app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command, info_name=name), name=name)


def _with_lower_headings(markdown: str) -> str:
    return "".join(f"#{line}" if line.startswith("#") else line for line in markdown.splitlines(keepends=True)) + "\n"


def tables_page() -> str:
    """Every table: column, type, whether it may be null, meaning."""
    parts = ["# Parquet tables\n\nWhere each lies: [Architecture](../architecture.md#what-lies-where-in-storage).\n"]
    for table in DESCRIBED["tables"]:
        parts += [f"\n## {table['name']}\n\n{table['about']}\n\n", _columns(rows(table))]
    parts.append(
        "\n## The analysis tables\n\nIn `analysis/EXPERIMENT/`, and in the report under Downloads. Every column may be "
        "null. [Metrics](../metrics.md) says how each number is computed.\n"
    )
    for name, contract in CONTRACTS.items():
        found = [(field.name, str(field.type), True, meaning(field.name)) for field in contract.schema]
        parts += [f"\n### {name}\n\nA row: {contract.row}.\n\n", _columns(found)]
    return "".join(parts)


def rows(table: dict[str, Any]) -> list[tuple[str, str, bool, str]]:
    """Name, type, nullable, meaning of each column of a table of columns.yaml."""
    meanings: dict[str, str] = table["columns"]
    if "schema" not in table:
        typed = {name: text.split("; ", 1) for name, text in meanings.items()}
        return [(name, type_, True, text) for name, (type_, text) in typed.items()]
    return [(field.name, str(field.type), field.nullable, meanings[field.name]) for field in schema(table["schema"])]


def schema(path: str) -> pa.Schema:
    module, _, name = path.rpartition(".")
    found: pa.Schema = getattr(import_module(module), name)
    return found


def meaning(column: str) -> str:
    """Of a column of an analysis table.

    Raises:
        KeyError: columns.yaml does not say.
    """
    known: dict[str, str] = DESCRIBED["analysis"]
    if column in known:
        return known[column]
    for suffix, text in SUFFIXES.items():
        if column.endswith(suffix):
            base = column.removesuffix(suffix)
            meaning(base)
            return f"{text} of `{base}`"
    if column.startswith("paper_"):
        meaning(column.removeprefix("paper_"))
        return "as printed in the paper"
    raise KeyError(column)


def _columns(found: list[tuple[str, str, bool, str]]) -> str:
    lines = ["| column | type | nullable | meaning |", "|---|---|---|---|"]
    for name, type_, nullable, text in found:
        cells = (f"`{name}`", f"`{type_}`", "yes" if nullable else "", text.replace("|", "&#124;"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"

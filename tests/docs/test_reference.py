"""The reference pages: every command, every column, every key of an experiment file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from btinet.analysis.schemas import CONTRACTS
from btinet.config import Experiment, Settings
from docs.hooks.reference import DESCRIBED, cli_page, meaning, schema

REPOSITORY = Path(__file__).parents[2]
TABLES = DESCRIBED["tables"]


@pytest.mark.parametrize("table", [table for table in TABLES if "schema" in table], ids=lambda table: table["name"])
def test_every_column_has_its_meaning(table: dict[str, object]) -> None:
    assert list(table["columns"]) == schema(str(table["schema"])).names


def test_every_column_of_the_analysis_has_its_meaning() -> None:
    used = {field.name for contract in CONTRACTS.values() for field in contract.schema}
    for column in used:
        assert meaning(column)
    assert [name for name in DESCRIBED["analysis"] if name not in used] == []
    with pytest.raises(KeyError):
        meaning("no_such_column")


def test_every_command_has_its_options() -> None:
    page = cli_page()
    for command in ("prepare", "train", "predict", "data audit", "runs compare"):
        assert f"### `btinet {command}`" in page.replace("#### ", "### ")
    assert "--max-risk" in page
    assert "--seed" in page[page.index("python -m flows.full_experiment") :]


def keys(model: type[BaseModel]) -> Iterator[str]:
    """Names of all fields, at any depth."""
    for name, field in model.model_fields.items():
        yield name
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from keys(part)


def test_every_key_of_an_experiment_file_is_described() -> None:
    page = (REPOSITORY / "docs/configuration.md").read_text()
    found = {*keys(Experiment), *keys(Settings)}
    assert {"name", "tau", "rotate_probability", "addressing_style", "max_failures", "mc_scope", "patience"} <= found
    assert sorted(key for key in found if f"`{key}`" not in page) == []


@pytest.mark.parametrize("group", ["model", "loss", "train", "evaluation"])
def test_numbers_given_as_defaults_are_those_of_the_code(group: str) -> None:
    """`tau` (0.7): the page has the default in parentheses."""
    lines = (REPOSITORY / "docs/configuration.md").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"| `{group}`"))
    numbers = {name: value for name, value in getattr(Settings(), group) if type(value) in (int, float)}
    given = {name: float(value) for name, value in re.findall(r"`(\w+)` \((\d[\d.e-]*)", line)}
    assert {name: given[name] for name in numbers} == numbers

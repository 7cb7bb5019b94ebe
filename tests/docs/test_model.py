"""docs/model.md: every equation of the paper, and the code it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs/model.md").read_text()


def names(path: Path) -> set[str]:
    """Functions, classes and methods (``TIM.forward``) of a module."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def test_the_code_it_names_exists() -> None:
    links = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)", TEXT)
    assert len(links) > 20
    assert [link for link in links if link[0] not in names(REPOSITORY / link[1])] == []


def test_every_equation_is_there() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", TEXT, re.MULTILINE)
    numbers = {int(number) for row in rows for number in row.split(",")}
    assert numbers >= set(range(1, 22))

"""``btinet models``."""

from __future__ import annotations

from typer.testing import CliRunner

from btinet import cli
from btinet.config import PRESETS, Settings
from btinet.models.cost import cost
from btinet.models.registry import METHODS, method_class


def test_list() -> None:
    """Every method, its numbers and the whole of its citation, at a terminal of 100 columns."""
    listed = CliRunner().invoke(cli.app, ["models", "list", "--preset", "tiny"], env={"COLUMNS": "100"})
    assert listed.exit_code == 0
    lines = listed.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    rows = [line.split() for line in lines]
    assert [row[0] for row in rows if row and row[0] in METHODS] == list(METHODS)

    counted = cost("unet", Settings.model_validate(PRESETS["tiny"]), 3)
    millions = [f"{number / 1e6:.3f}" for number in (counted.parameters, counted.own_parameters)]
    (unet,) = (row for row in rows if row[:1] == ["unet"])
    assert unet[1:5] == ["seg", *millions, f"{counted.multiply_adds / 1e9:.3f}"]

    text_column = lines[next(n for n, row in enumerate(rows) if row[:1] == ["method"])].index("title and citation")
    words = " ".join(line[text_column:].strip() for line in lines)
    words = words.replace("- ", "-")  # where a line was broken after a hyphen
    for method in map(method_class, METHODS):
        assert f"{method.about.title} {method.about.citation}".replace("- ", "-") in words


def test_help_says_what_the_numbers_are() -> None:
    text = CliRunner().invoke(cli.app, ["models", "list", "--help"], env={"COLUMNS": "100"}).stdout
    for column in ("params, M", "own, M", "GMAC"):
        assert column in text

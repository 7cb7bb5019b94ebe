"""The columns that docs/columns.yaml gives for tables without a schema in the code, against files that were written."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pyarrow.parquet as pq
import yaml
from PIL import Image
from typer.testing import CliRunner

from btinet.cli import app
from btinet.config import LEVELS
from btinet.datasets.phantom import PhantomReader, draw
from btinet.models.output import Signals
from tests.training.micro import Bench

TABLES = yaml.safe_load((Path(__file__).parents[2] / "docs/columns.yaml").read_text())["tables"]


def documented(name: str) -> dict[str, str]:
    """Column -> type."""
    (table,) = (table for table in TABLES if table["name"] == name)
    return {column: text.split("; ")[0] for column, text in table["columns"].items()}


def written(file: Path) -> dict[str, str]:
    return {field.name: str(field.type) for field in pq.read_schema(file)}


def test_runs(micro: Bench) -> None:
    (file,) = Path(micro.root.path).glob("results/runs/*/*/*.parquet")
    found = written(file)
    for name in ("weights_sha256", "transformer_sha256"):  # this run starts from random weights
        assert found.pop(name) == "null"
    expected = documented("results/runs")
    assert found == {name: expected[name] for name in found}
    assert set(expected) - set(found) == {"weights_sha256", "transformer_sha256"}


def test_epochs(micro: Bench) -> None:
    found: dict[str, str] = {}
    for file in Path(micro.root.path).glob("results/epochs/*/*/*.parquet"):
        found |= written(file)
    assert found == documented("results/epochs")


def test_predictions_of_images(package: Path, tmp_path: Path) -> None:
    Image.fromarray(draw(1000)[0]).save(tmp_path / "image.png")
    arguments = ["predict", str(tmp_path / "image.png"), "--run", str(package), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    expected = documented("predictions.parquet of btinet predict")
    probability, signal = expected.pop("p_{class}"), expected.pop("{signal}_{level}")
    signals = (*Signals._fields, "delta")
    expected |= {f"p_{name}": probability for name in PhantomReader.classes}
    expected |= {f"{name}_{level}": signal for name, level in product(signals, LEVELS)}
    assert written(tmp_path / "out/predictions.parquet") == expected

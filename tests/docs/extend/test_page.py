"""docs/extend.md shows what is tested, and all four extensions together go from images to a report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from btinet.binding import bind_all, prepare_dataset
from btinet.config import Experiment
from btinet.datasets.phantom import LABELS, NORMAL, draw
from btinet.evaluation.evaluate import evaluate
from btinet.results import publish_results
from btinet.storage import Storage
from btinet.training.stage import train_stage
from tests.docs.extend.conftest import BLOCKS, EXAMPLES, FILES, REGISTRIES, REPOSITORY
from tests.training.micro import MICRO, one_thread  # noqa: F401


def test_the_page_shows_these_files_and_tests() -> None:
    assert sorted(Path(path).name for path in FILES) == sorted(path.name for path in EXAMPLES.glob("*.py"))
    tests = [path for path in BLOCKS if path.startswith("tests/")]
    assert len(FILES) == len(tests) == len(REGISTRIES) == 4
    for path in FILES:
        assert BLOCKS[path] == (EXAMPLES / Path(path).name).read_text()
    for path in tests:
        assert BLOCKS[path] == (Path(__file__).parent / Path(path).name).read_text()


@pytest.mark.parametrize("path", REGISTRIES)
def test_one_line_a_registry_beside_its_import(path: str) -> None:
    lines = BLOCKS[path].splitlines()
    *imported, _ = (line for line in lines if line.startswith("+"))
    assert len(imported) <= 1 and all(line.startswith("+from ") for line in imported)
    code = (REPOSITORY / path).read_text()
    assert all(f"{line[1:]}\n" in code for line in lines if line.startswith(" ") and line.strip())


def test_together_from_images_to_a_report(tmp_path: Path) -> None:
    numbers = [number for number in range(50) if LABELS[number % len(LABELS)] != NORMAL]
    for number in numbers:
        image, mask = draw(number)
        name = ("nevus", "melanoma")[LABELS[number % len(LABELS)]]
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "images" / name / f"{number}.png")
        Image.fromarray(mask * 255).save(tmp_path / "images" / name / f"{number}.mask.png")
    settings = MICRO | {
        "datasets": [{"name": "lesions", "root": str(tmp_path / "images")}],
        "methods": ["two-heads", "btinet"],
        "storage": {"url": str(tmp_path / "storage")},
    }
    experiment = Experiment.model_validate(settings)
    root = Storage(experiment.storage.url)
    prepare_dataset(experiment, experiment.datasets[0], root, lambda done, total: None)
    bounds = bind_all(experiment, root)
    for bound in bounds:
        for stage in bound.run.stages:
            train_stage(bound, stage, root, torch.device("cpu"), lambda progress: None)
        evaluate(bound, root, torch.device("cpu"))
    results = publish_results(experiment, bounds, root)

    confusion = results.tables["confusion"].to_pylist()
    counted = {method: sum(row["n"] for row in confusion if row["method"] == method) for method in experiment.methods}
    assert counted["two-heads"] == counted["btinet"] > 0
    signals = results.tables["detection"].to_pylist()
    assert {row["level"] for row in signals if row["signal"] == "tim_change"} == {"D1", "D2", "D3", "D4"}
    page = Path(results.report.path).read_text()
    for shown in ("two-heads", "confusion", "tim_change", "lesions"):
        assert shown in page

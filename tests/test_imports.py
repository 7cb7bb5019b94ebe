"""Who may import whom: the library knows nothing of Prefect, Ray and DVC, and rooms import only rooms below them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import btinet

PACKAGE = Path(btinet.__file__).parent

ROOMS = [  # from the bottom up; one line may not import another on the same level
    {"errors", "console", "options"},
    {"config", "torchvision_compat"},
    {"storage", "ranks"},
    {"receipts", "partitions", "progress", "datasets", "losses", "metrics"},
    {"models"},
    {"training"},
    {"evaluation", "calibration"},
    {"catalog"},
    {"inference"},
    {"analysis"},
    {"report"},
    {"binding", "results", "status"},
    {"search", "serving"},
    {"cluster"},
    {"data_cli", "experiment_cli", "models_cli", "predict_cli", "runs_cli", "serve_cli", "tune_cli"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}

LIGHT = [
    "btinet.cluster.worker",
    "btinet.cli",
    "btinet.models.registry",
    "btinet.datasets",
    "btinet.datasets.prepare",
    "btinet.binding",
    "btinet.search",
    "btinet.status",
    "btinet.analysis",
    "btinet.report",
    "btinet.results",
    "btinet.calibration.reliability",
    "btinet.calibration.distribution",
]
LIBRARY = [
    "btinet.models.btinet",
    "btinet.training.stage",
    "btinet.evaluation.evaluate",
    "btinet.inference.predict",
]

PROBE = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    found[name] = [heavy for heavy in ("torch", "prefect", "ray", "dvc", "flows", "matplotlib") if heavy in sys.modules]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """What is loaded after each of these imports, one after the other in a fresh process."""
    command = [sys.executable, "-c", PROBE, *LIGHT, *LIBRARY]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("module", LIBRARY)
def test_library_imports_no_orchestrator(imported: dict[str, list[str]], module: str) -> None:
    assert set(imported[module]) == {"torch", "matplotlib"}  # the latter from LIGHT


@pytest.mark.parametrize("module", LIGHT)
def test_no_torch(imported: dict[str, list[str]], module: str) -> None:
    """The flow comes up without it, as does the cluster's controller, which loads the worker.

    Analysis and report are Arrow in, Arrow out.
    """
    assert set(imported[module]) <= {"matplotlib"}


def test_commands_answer_at_once(imported: dict[str, list[str]]) -> None:
    assert imported["btinet.cli"] == []


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    """Full names of what a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_of(file: Path) -> None:
    names = imports(file)
    tops = {name.split(".")[0] for name in names}
    assert not tops & {"flows", "prefect", "dvc", "tests"}
    assert room(file) == "cluster" or "ray" not in tops
    if room(file) == "__init__":
        assert "btinet" not in tops
        return
    for name in names:
        if name.startswith("btinet."):
            other = name.split(".")[1]
            assert other == room(file) or LEVEL[other] < LEVEL[room(file)], f"{room(file)} imports {name}"


def test_every_room_is_listed() -> None:
    assert {room(file) for file in modules()} - {"__init__"} == LEVEL.keys()


def test_flows_has_no_tensors() -> None:
    for file in (PACKAGE.parent / "flows").glob("*.py"):
        assert not {name.split(".")[0] for name in imports(file)} & {"torch", "timm", "numpy"}

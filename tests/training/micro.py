"""The smallest experiment that goes through everything: 40 phantom images of 32x32, seconds from data to report.

What takes long (drawing the images, training) is done once a session and copied by whoever changes it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from btinet.binding import bind_one
from btinet.config import BoundRun, Experiment
from btinet.datasets.prepared import PreparedDataset, open_prepared
from btinet.datasets.splits import load_split
from btinet.evaluation.evaluate import evaluate
from btinet.models.registry import build
from btinet.progress import Progress
from btinet.storage import Storage
from btinet.training.data import SplitData
from btinet.training.outputs import stage_folder
from btinet.training.stage import train_stage
from btinet.training.tasks import Stage1Task, Stage2Task, Task

CPU = torch.device("cpu")
SEED = 7
KEY = f"phantom/btinet/full/{SEED}"
COUNTS = {"train": 28, "val": 6, "test": 6}

MICRO: dict[str, Any] = {
    "name": "micro",
    "datasets": [{"name": "phantom", "max_samples": 40}],
    "preset": "tiny",
    "seeds": [SEED],
    "image_size": 32,
    "model": {
        "decoder_channels": [16, 12, 8, 8],
        "clf_dim": 16,
        "gate_hidden": 8,
        "gate_projection": 8,
        "mscf": False,  # three quarters of the parameters
    },
    "train": {
        "batch_size": 7,
        "val_batch_size": 4,
        "stage1": {"epochs": 3, "learning_rate": 3e-3},
        "stage2": {"epochs": 2},
    },
    "evaluation": {"mc_passes": 3},
}


class Bench(NamedTuple):
    """An experiment with one run, its data prepared in a storage of its own."""

    experiment: Experiment
    file: Path
    """The experiment as YAML."""
    bound: BoundRun
    root: Storage

    def folder(self, stage: int) -> Path:
        return Path(stage_folder(self.root, self.bound.run_id, stage).path)

    def prepared(self) -> PreparedDataset:
        return open_prepared(self.root, "phantom", self.bound.prepared)

    def data(self, split: str) -> SplitData:
        prepared = self.prepared()
        return SplitData(prepared, load_split(self.root, prepared, "paper", SEED).rows(split), CPU)

    def task(self, stage: int) -> Task:
        """An untrained model's task."""
        settings = self.bound.run.settings
        torch.manual_seed(SEED)
        model = build(self.bound.run.method, settings.model, classes=3)
        return Stage1Task(model, settings.loss) if stage == 1 else Stage2Task(model, settings.loss)

    def train(self, *stages: int, on_progress: Callable[[Progress], None] = lambda progress: None) -> None:
        for stage in stages:
            train_stage(self.bound, stage, self.root, CPU, on_progress)


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Tiny tensors are slower on several, and sums depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For modules that import this."""
    with on_one_thread():
        yield


def settings(storage: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """MICRO with changes, as an experiment file holds it."""
    return _merge(MICRO | {"storage": {"url": str(storage)}}, changes)


def bench(folder: Path, base: Path, **changes: Any) -> Bench:
    """An experiment in ``folder``, ready to train; ``base`` is pytest's base folder."""
    shutil.copytree(_prepared_storage(base) / "datasets", folder / "storage/datasets")
    return _bench(folder, changes)


def finished_bench(folder: Path, base: Path) -> Bench:
    """As :func:`bench`, already trained and evaluated."""
    shutil.copytree(_finished_storage(base), folder / "storage")
    return _bench(folder, {})


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below, with time and size."""
    found = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.stat().st_size) for file in found}


def _bench(folder: Path, changes: dict[str, Any]) -> Bench:
    content = settings(folder / "storage", changes)
    file = folder / "experiment.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content))
    experiment = Experiment.model_validate(content)
    root = Storage(experiment.storage.url)
    return Bench(experiment, file, bind_one(experiment, experiment.runs()[0].key, root), root)


@cache
def _prepared_storage(base: Path) -> Path:
    return Path(_bench(base / "micro-prepared", {}).root.path)


@cache
def _finished_storage(base: Path) -> Path:
    made = bench(base / "micro-finished", base)
    with on_one_thread():
        made.train(1, 2)
        evaluate(made.bound, made.root, CPU)
    return Path(made.root.path)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        merged[name] = _merge(base[name], value) if isinstance(value, dict) and name in base else value
    return merged

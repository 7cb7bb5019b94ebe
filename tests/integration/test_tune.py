"""``btinet tune`` as a user starts it, with a real Ray Tune."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from btinet.config import load_experiment
from tests.integration.conftest import REPOSITORY

BTINET = str(Path(sys.executable).with_name("btinet"))


def write_search(experiment: Path, **fields: object) -> Path:
    file = experiment.with_name("search.yaml")
    content = {"name": "tau", "experiment": experiment.name, "space": {"model.tau": [0.3, 1.0]}}
    file.write_text(yaml.safe_dump(content | fields))
    return file


def weights(results: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in results.glob("runs/*/stage*/model.safetensors")}


def test_search_and_again(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    """One trial more than before trains one run more; a trial that cannot be trained is told and does not win."""
    train = {"batch_size": 8, "stage1": {"epochs": 1}, "stage2": {"epochs": 1}}
    experiment, results = write_experiment(train=train), tmp_path / "results"
    search = write_search(experiment, space={"model.tau": [0.3], "train.stage1.learning_rate": [1e-3, 1e30]})
    done = subprocess.run([BTINET, "tune", str(search)], capture_output=True, text=True, timeout=400, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "2 trial(s), 2 run(s), 0 of them done already" in done.stderr
    assert "trial 1/2 (model.tau=0.3, train.stage1.learning_rate=0.001) seed 42  stage 2  epoch 1/1" in done.stderr
    assert "learning_rate=1e+30) seed 42 failed: stage 1, epoch 1, step 2: the loss is nan" in done.stderr
    table = pq.read_table(results / "searches/tau/trials.parquet").to_pylist()
    assert table[0]["score"] > 0 and table[0]["failure"] is None
    assert table[1]["score"] is None and "the loss is nan" in table[1]["failure"]
    best = load_experiment(results / "searches/tau/best.yaml")
    assert best.runs()[0].settings.train.stage1.learning_rate == 1e-3

    before = weights(results)
    assert len(before) == 2
    search = write_search(experiment, name="other", space={"model.tau": [0.3], "train.stage1.learning_rate": [1e-3]})
    done = subprocess.run([BTINET, "tune", str(search)], capture_output=True, text=True, timeout=100, check=False)
    assert "1 trial(s), 1 run(s), 1 of them done already" in done.stderr and "Ray" not in done.stderr
    assert weights(results) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_search_goes_on(write_experiment: Callable[..., Path], tmp_path: Path, number: int) -> None:
    """Nothing that was trained is trained again; after Ctrl-C no process is left."""
    train = {"batch_size": 8, "stage1": {"epochs": 6, "patience": 6}, "stage2": {"epochs": 1}}
    experiment, results = write_experiment(train=train, resources={"max_parallel_runs": 1}), tmp_path / "results"
    command = [BTINET, "tune", str(write_search(experiment))]
    search = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        assert search.stdout is not None
        assert any("trial 2/2" in line and "stage 1  epoch 3/6" in line for line in search.stdout)
        family = psutil.Process(search.pid).children(recursive=True)
        before = weights(results)
        if number == signal.SIGINT:
            os.killpg(search.pid, number)
            printed = search.stdout.read()
            assert search.wait(timeout=60) == 130 and "Traceback" not in printed
        else:
            search.kill()
            search.wait()
        # of a killed one Ray's two agents take a minute to notice; the trials end at once
        assert not psutil.wait_procs(family, timeout=60 if number == signal.SIGINT else 150)[1]
    finally:
        search.kill()
        search.wait()
    assert len(before) == 2, "both stages of the first trial"
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 trial(s), 2 run(s), 1 of them done already" in done.stderr
    assert "trial 1/2" not in done.stderr and "stage 1  epoch 1/6" not in done.stderr
    assert "stage 1  epoch 6/6" in done.stderr
    assert before.items() <= weights(results).items()


@pytest.mark.slow
def test_flow(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    train = {"batch_size": 8, "stage1": {"epochs": 1}, "stage2": {"epochs": 1}}
    search = write_search(write_experiment(train=train))
    command = [sys.executable, "-m", "flows.tune", str(search)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed 42  stage 2  epoch 1/1" in done.stderr and "Best:" in done.stderr
    assert load_experiment(tmp_path / "results/searches/tau/best.yaml").name == "tau-best"

    search.write_text(search.read_text().replace("model.tau", "model.tua"))
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2 and "model.tua: unknown key" in done.stderr

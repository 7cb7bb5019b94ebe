"""The whole chain as a user starts it: Prefect's embedded API, an embedded Ray, files on a disk."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from btinet.evaluation.schema import PREDICTIONS
from btinet.models.registry import METHODS, method_class
from btinet.partitions import read_partition
from btinet.storage import Storage
from tests.integration.conftest import REPOSITORY, run_flow


def files(folder: Path) -> dict[str, int]:
    """Every file below, with its time of change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_full_experiment_and_again(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    experiment, results = write_experiment(seeds=[42, 123]), tmp_path / "results"
    printed = run_flow(experiment)
    for expected in ("Ray dashboard: http://127.0.0.1:", "stage 1  epoch 2/2", "stage 2  epoch 1/1", "acc %"):
        assert expected in printed
    for seed in (42, 123):
        (file,) = results.glob(f"results/predictions/dataset=phantom/method=btinet/*-{seed}-tiny-*.parquet")
        table = read_partition(Storage(str(file)))
        assert table.schema.equals(PREDICTIONS)
        assert set(table["stage"].to_pylist()) == {1, 2} and set(table["split"].to_pylist()) == {"val", "test"}
    assert (results / "report/micro/index.html").stat().st_size > 10_000
    assert {"table2.parquet", "table3.parquet", "segmentation.parquet", "classification.parquet"} <= {
        file.name for file in results.glob("analysis/micro/*")
    }
    assert not list(results.rglob("checkpoints/*")), "checkpoints have served when a stage is finished"
    assert not list(results.rglob("*.part"))

    before = files(results / "runs")
    printed = run_flow(experiment)
    assert "2 of 2 run(s) done already" in printed and "prepared before" in printed
    assert "Ray dashboard" not in printed, "nothing to do: no cluster is started"
    assert files(results / "runs") == before

    # bad input ends before any work, in one message
    experiment = write_experiment(datasets=[{"name": "busi", "root": str(tmp_path / "nowhere")}])
    done = subprocess.run(
        [sys.executable, "-m", "flows.full_experiment", str(experiment)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert str(tmp_path / "nowhere") in done.stderr


@pytest.mark.parametrize(
    "methods",
    [["btinet", "mti-net", "dynashare", "unetpp"], pytest.param(list(METHODS), marks=pytest.mark.slow)],
    ids=["four", "all"],
)
def test_methods_side_by_side(write_experiment: Callable[..., Path], tmp_path: Path, methods: list[str]) -> None:
    """Gates, several heads, a penalty, no classification: one flow, ending in Tables 5 and 6."""
    train = {"batch_size": 8, "stage1": {"epochs": 1}, "stage2": {"epochs": 1}}
    experiment = write_experiment(methods=methods, train=train)
    printed = run_flow(experiment, timeout=900)
    assert "Table 5: joint methods" in printed and "Table 6: segmentation methods" in printed
    results = tmp_path / "results"
    tables = {name: pq.read_table(results / f"analysis/micro/{name}.parquet") for name in ("table5", "table6")}
    joint = {name for name in methods if "clf" in method_class(name).about.tasks}
    assert set(tables["table5"]["method"].to_pylist()) == joint
    assert set(tables["table6"]["method"].to_pylist()) == set(methods)
    assert tables["table5"]["accuracy"].null_count == 0
    page = (results / "report/micro/index.html").read_text()
    assert 'id="table5"' in page and 'id="table6"' in page


def test_killed_worker_ends_with_the_same_weights(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    """kill -9 of the training worker mid-epoch: Ray starts another, and the weights are those of a quiet run."""
    fields = {"train": {"batch_size": 8, "stage1": {"epochs": 12, "patience": 12}, "stage2": {"epochs": 1}}}
    experiment = write_experiment(**fields)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as in a worker with one CPU: bits depend on it
    btinet = str(Path(sys.executable).with_name("btinet"))
    train = [btinet, "train", "phantom/btinet/full/42", "--stage", "1", "--experiment", str(experiment)]
    subprocess.run(
        [*train, "--in-process", "--storage", str(tmp_path / "quiet")],
        check=True,
        env=environment,
        timeout=200,
    )

    disturbed = tmp_path / "results"
    job = subprocess.Popen(train, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        killed = kill_training_worker(job, disturbed)
        output, _ = job.communicate(timeout=240)
    finally:
        job.kill()
        job.wait()
    assert job.returncode == 0, output

    def model(root: Path) -> bytes:
        (file,) = root.glob("runs/*/stage1/model.safetensors")
        return file.read_bytes()

    assert killed, f"the training ended before its worker could be killed: {output}"
    assert model(disturbed) == model(tmp_path / "quiet")


def kill_training_worker(job: subprocess.Popen[str], root: Path) -> bool:
    """kill -9 the training worker among the job's own processes, between its third checkpoint and its end."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and job.poll() is None:
        if list(root.glob("runs/*/stage1/checkpoints/epoch-0003.json")):
            for process in psutil.Process(job.pid).children(recursive=True):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    process.send_signal(signal.SIGKILL)
                    return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_interrupted_flow_leaves_no_process_and_goes_on(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches the whole process group; the same command then goes on from the checkpoint."""
    experiment = write_experiment(train={"batch_size": 8, "stage1": {"epochs": 12, "patience": 12}})
    flow = subprocess.Popen(
        [sys.executable, "-m", "flows.full_experiment", str(experiment)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert flow.stdout is not None
        # it tells once a second, and an epoch takes less
        assert any(re.search("stage 1  epoch ([2-9]|1[0-2])/12", line) for line in flow.stdout)
        family = psutil.Process(flow.pid).children(recursive=True)
        os.killpg(flow.pid, signal.SIGINT)
        printed = flow.stdout.read()
        assert flow.wait(timeout=30) == 130
        assert "the same command goes on" in printed and "Traceback" not in printed
        assert not psutil.wait_procs(family, timeout=10)[1]
    finally:
        flow.kill()
        flow.wait()
    assert "stage 1  epoch 1/12" not in run_flow(experiment)

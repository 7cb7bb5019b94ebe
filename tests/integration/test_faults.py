"""Faults, really made, on a Ray cluster with a head and a node: what is lost is done again, to the same numbers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from tests.integration.cluster import (
    BIN,
    Nodes,
    free_port,
    kill_flows,
    kill_node,
    ray_cluster,
    start_flow,
    started,
    wait_for,
)
from tests.integration.conftest import MICRO

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

EPOCHS = 16
FIELDS: dict[str, Any] = {
    "train": {"batch_size": 8, "stage1": {"epochs": EPOCHS, "patience": EPOCHS}, "stage2": {"epochs": 1}},
}
TIMEOUT = 900
"""Seconds for what takes one minute on a quiet machine."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with ray_cluster() as nodes:
        yield nodes


@pytest.fixture(autouse=True)
def no_flow_is_left() -> Iterator[None]:
    yield
    kill_flows()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run ends with where nothing happens."""
    return in_plain_processes(tmp_path_factory.mktemp("undisturbed"), FIELDS)


def in_plain_processes(folder: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """What the run ends with when trained in this machine's plain processes, one thread each."""
    file = folder / "micro.yaml"
    file.write_text(yaml.safe_dump(MICRO | {"storage": {"url": str(folder / "results")}} | fields))
    btinet = str(Path(sys.executable).with_name("btinet"))
    steps = (["train", "--stage", "1"], ["train", "--stage", "2"], ["evaluate"])
    for command, *options in steps:
        subprocess.run(
            [btinet, command, "phantom/btinet/full/42", *options, "-e", str(file), "--in-process"],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=TIMEOUT,
        )
    return outcome(folder / "results")


def outcome(results: Path) -> dict[str, Any]:
    """The bytes of the models, the histories and the predictions: all but the times."""
    models = {stage: _only(results, f"runs/*/stage{stage}/model.safetensors") for stage in (1, 2)}
    table = pq.read_table(_only(results, "results/predictions/*/*/*.parquet"))
    return {stage: file.read_bytes() for stage, file in models.items()} | {
        "history": [pq.read_table(file).drop_columns(["seconds"]).to_pylist() for file in _histories(results)],
        "predictions": table.drop_columns(["latency_ms"]).to_pylist(),
    }


def _histories(results: Path) -> list[Path]:
    return sorted(results.glob("results/epochs/*/*/*.parquet"))


def _only(folder: Path, pattern: str) -> Path:
    (file,) = folder.glob(pattern)
    return file


def checkpoint(results: Path, epoch: int) -> Callable[[], bool]:
    return lambda: bool(list(results.glob(f"runs/*/stage1/checkpoints/epoch-{epoch:04d}.json")))


def assert_clean(nodes: Nodes, results: Path) -> None:
    """No process that trains or drives is left, and nothing half-written is where a reader would find it."""
    wait_for(lambda: not nodes.training_workers() and not nodes.drivers(), "the cluster is idle", 60, poll=1)
    for file in results.rglob("*.parquet"):
        pq.read_table(file)
    assert not list(results.glob("results/**/*.part"))


def new_jobs(nodes: Nodes, before: dict[str, str]) -> dict[str, str]:
    return {name: status for name, status in nodes.jobs().items() if name not in before}


def finish(flow: subprocess.Popen[bytes], log: Path) -> str:
    assert flow.wait(TIMEOUT) == 0, log.read_text()[-5000:]
    return log.read_text()


def test_killed_flow_finds_its_job_again(
    nodes: Nodes, write_experiment: Callable[..., Path], tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """kill -9 of the flow: the job goes on; the same command finds it by its name, and nothing is trained twice."""
    experiment, results, log = write_experiment(**FIELDS), tmp_path / "results", tmp_path / "flow.log"
    before = nodes.jobs()
    secrets = {"AWS_SECRET_ACCESS_KEY": "not-to-be-seen-5f1b"}
    flow = start_flow(experiment, log, **nodes.environment, **secrets)
    wait_for(checkpoint(results, 2), "the second checkpoint", TIMEOUT)
    for gauge in ("epoch", "loss", "val_iou", "samples_per_second"):
        pattern = rf'^ray_btinet_{gauge}{{.*run="phantom/btinet/full/42".*}} [0-9.]+'
        wait_for(lambda pattern=pattern: re.search(pattern, nodes.metrics(), re.MULTILINE), f"{gauge} in metrics", 60)
    family = psutil.Process(flow.pid).children(recursive=True)
    assert family, "it has a Prefect server of its own"
    os.killpg(flow.pid, signal.SIGKILL)
    flow.wait()
    assert not psutil.wait_procs(family, timeout=20)[1], "no process is left of it"
    (name,) = jobs = new_jobs(nodes, before)
    assert jobs == {name: "RUNNING"} and name.startswith("btinet-phantom-btinet-full-42-tiny-")

    workers = nodes.training_workers()
    for worker in workers:  # or the job could be done before the flow is there
        worker.suspend()
    flow = start_flow(experiment, log, **nodes.environment)
    wait_for(lambda: f"found its job {name}" in log.read_text(), "the job found again", TIMEOUT)
    for worker in workers:
        worker.resume()
    printed = finish(flow, log)
    assert new_jobs(nodes, before) == {name: "SUCCEEDED"}, "one job did it all"
    assert outcome(results) == undisturbed
    assert_clean(nodes, results)

    # neither the cluster's token nor a key of the flow's environment is in what was printed, stored or submitted
    jobs = json.dumps(nodes.get("/api/jobs/")) + json.dumps(nodes.get(f"/api/jobs/{name}/logs"))
    seen = [printed.encode(), jobs.encode(), *(file.read_bytes() for file in results.rglob("*") if file.is_file())]
    for secret in (nodes.token, *secrets.values()):
        assert not any(secret.encode() in content for content in seen)


def test_killed_node(
    nodes: Nodes, write_experiment: Callable[..., Path], tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """kill -9 of the node that trains; another joins the cluster, and the run goes on there."""
    experiment, results, log = write_experiment(**FIELDS), tmp_path / "results", tmp_path / "flow.log"
    flow = start_flow(experiment, log, **nodes.environment)
    wait_for(checkpoint(results, 2), "the second checkpoint", TIMEOUT)
    kill_node(nodes.workers.pop())
    assert not nodes.training_workers()
    nodes.workers.append(nodes.add())
    finish(flow, log)
    assert outcome(results) == undisturbed
    assert_clean(nodes, results)


def test_workers_on_two_nodes(nodes: Nodes, write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    """Two workers with half of each batch, on two nodes, train what one does; the tiny preset has dropout.

    With small steps: BatchNorm over the micro images' 1x1 maps would make much of rounding errors.
    """
    second = nodes.add()
    fields = {"train": FIELDS["train"] | {"stage1": {"epochs": 4, "learning_rate": 1e-5}}}
    experiment, results, log = (
        write_experiment(**fields, resources={"workers": 2}),
        tmp_path / "results",
        tmp_path / "flow.log",
    )
    flow = start_flow(experiment, log, **nodes.environment)
    wait_for(checkpoint(results, 1), "the first checkpoint", TIMEOUT)
    assert len({process.ppid() for process in nodes.training_workers()}) == 2, "they are on different nodes"
    finish(flow, log)
    kill_node(second)
    (tmp_path / "one").mkdir()
    one = in_plain_processes(tmp_path / "one", fields)
    for rows, wanted in zip(outcome(results)["history"], one["history"], strict=True):
        for row, expected in zip(rows, wanted, strict=True):
            numbers = {name: value for name, value in expected.items() if isinstance(value, float)}
            assert {name: row[name] for name in numbers} == pytest.approx(numbers, rel=5e-4, abs=1e-6)


@pytest.fixture
def prefect_server(tmp_path: Path) -> Iterator[dict[str, str]]:
    with started_server(tmp_path, free_port()) as environment:
        yield environment


@contextmanager
def started_server(folder: Path, port: int) -> Iterator[dict[str, str]]:
    """A Prefect server; what it knows stays in ``folder``. Gives what its clients need."""
    url = f"http://127.0.0.1:{port}/api"
    environment = {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_API_URL": url, "PREFECT_SERVER_UI_API_URL": url}
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with started(command, folder / "server.log", **environment):
        wait_for(lambda: post(f"{url}/flow_runs/filter") is not None, "the Prefect server is up", 120, poll=0.5)
        yield environment


def post(url: str, content: dict[str, Any] | None = None) -> Any:
    request = urllib.request.Request(url, json.dumps(content or {}).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def test_cancelled_in_the_ui(
    nodes: Nodes,
    write_experiment: Callable[..., Path],
    tmp_path: Path,
    undisturbed: dict[str, Any],
    prefect_server: dict[str, str],
) -> None:
    """The UI sets the flow run's state to Cancelling. The job ends within 30 s; a new flow goes on."""
    experiment, results, log = write_experiment(**FIELDS), tmp_path / "results", tmp_path / "flow.log"
    before = nodes.jobs()
    flow = start_flow(experiment, log, **nodes.environment, **prefect_server)
    wait_for(checkpoint(results, 2), "the second checkpoint", TIMEOUT)
    url = prefect_server["PREFECT_API_URL"]
    (flow_run,) = post(f"{url}/flow_runs/filter")
    post(f"{url}/flow_runs/{flow_run['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    asked = time.monotonic()
    wait_for(lambda: set(new_jobs(nodes, before).values()) == {"STOPPED"}, "the job is stopped", 30)
    wait_for(lambda: not nodes.training_workers() and not nodes.drivers(), "nothing trains", 30)
    assert time.monotonic() - asked < 30
    flow.wait(60)
    (flow_run,) = post(f"{url}/flow_runs/filter")
    assert flow_run["state"]["type"] == "CANCELLED"

    finish(start_flow(experiment, log, **nodes.environment, **prefect_server), log)
    assert outcome(results) == undisturbed
    assert_clean(nodes, results)


def test_prefect_server_restarted(
    nodes: Nodes, write_experiment: Callable[..., Path], tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """Gone for ten seconds while a run trains; the flow completes, and the server knows it."""
    experiment, results, log = write_experiment(**FIELDS), tmp_path / "results", tmp_path / "flow.log"
    port = free_port()
    with started_server(tmp_path, port) as server:
        flow = start_flow(experiment, log, **nodes.environment, **server)
        wait_for(checkpoint(results, 2), "the second checkpoint", TIMEOUT)
    time.sleep(10)
    with started_server(tmp_path, port):
        finish(flow, log)
        (flow_run,) = post(f"{server['PREFECT_API_URL']}/flow_runs/filter")
        assert flow_run["state"]["type"] == "COMPLETED"
    assert outcome(results) == undisturbed
    assert_clean(nodes, results)

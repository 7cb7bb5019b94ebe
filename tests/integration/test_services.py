"""The flow on services that outlive it: a Ray cluster, a Prefect server with a worker."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.cluster import BIN, free_port, started
from tests.integration.conftest import REPOSITORY, run_flow

pytestmark = pytest.mark.slow


def wait_for(check: Callable[[], bool], what: str, log: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if check():
                return
        except OSError:
            pass
        time.sleep(0.5)
    pytest.fail(f"{what} within {seconds} s:\n{log.read_text()[-3000:]}")


def post(url: str) -> bytes:
    request = urllib.request.Request(url, b"{}", {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        content: bytes = answer.read()
        return content


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        content: bytes = answer.read()
        return content


def test_running_cluster(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    """With RAY_ADDRESS the training runs on that cluster, and its dashboard shows each stage."""
    port, dashboard = free_port(), free_port()
    scratch = Path("/tmp") / f"btinet-ray-{os.getpid()}"  # sockets' paths must be short
    log = tmp_path / "ray.log"
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"),
        *("--num-cpus=2", "--object-store-memory=200000000", f"--temp-dir={scratch}", "--node-ip-address=127.0.0.1"),
        *(f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"),
    ]
    # by default a cluster asks for a token, which this test would have to carry to the dashboard
    auth = {"RAY_AUTH_MODE": "disabled"}
    with started(command, log, **auth, PATH=f"{BIN}:{os.environ['PATH']}"):
        wait_for(lambda: b"ray_version" in get(f"http://127.0.0.1:{dashboard}/api/version"), "Ray is up", log)
        printed = run_flow(write_experiment(), RAY_ADDRESS=f"127.0.0.1:{port}", **auth)
        assert f"Ray dashboard: http://127.0.0.1:{dashboard}" in printed
        assert "sent to the cluster: the package btinet (" in printed
        (job,) = json.loads(get(f"http://127.0.0.1:{dashboard}/api/jobs/"))
        assert job["status"] == "SUCCEEDED" and job["metadata"]["run"] == "phantom/btinet/full/42"
        runs = json.loads(get(f"http://127.0.0.1:{dashboard}/api/train/v2/runs/v1"))["train_runs"]
        assert {run["name"].rsplit("-", 1)[1] for run in runs} == {"stage1", "stage2"}
        assert all(run["status"] == "FINISHED" for run in runs)
    assert (tmp_path / "results/report/micro/index.html").exists()


def test_deployment(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    """prefect deploy --all, a worker, prefect deployment run --watch."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_API_URL": url, "PREFECT_SERVER_UI_API_URL": url}
    prefect = str(BIN / "prefect")

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [prefect, "--no-prompt", *arguments],
            cwd=REPOSITORY,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    server_log, worker_log = tmp_path / "server.log", tmp_path / "worker.log"
    server = [prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with started(server, server_log, **environment):
        wait_for(lambda: get(f"{url}/health") == b"true", "the Prefect server is up", server_log)
        call("work-pool", "create", "btinet", "--type", "process")
        call("deploy", "--all")
        with started([prefect, "worker", "start", "--pool", "btinet"], worker_log, **environment):
            parameters = f"experiment={write_experiment()}"
            printed = call("deployment", "run", "btinet/full-experiment", "--watch", "-p", parameters)
        assert "'Completed'" in printed, worker_log.read_text()
        artifacts = json.loads(post(f"{url}/artifacts/latest/filter"))
        assert {"results", "runs", "report", "ray-dashboard"} <= {artifact["key"] for artifact in artifacts}
        deployments = {found["name"]: found for found in json.loads(post(f"{url}/deployments/filter"))}
        assert deployments.keys() == {"full-experiment", "tune"}
        schema = deployments["full-experiment"]["parameter_openapi_schema"]
        assert schema["properties"]["preset"]["anyOf"][0]["enum"] == ["paper", "tiny"]
    assert (tmp_path / "results/report/micro/index.html").exists()

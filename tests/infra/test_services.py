"""The scripts of infra/ start real services: Prefect on PostgreSQL, a Ray cluster that asks for a token."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import REPOSITORY
from tests.integration.test_services import BIN, free_port, get, post, started, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path, for sockets, that other users can enter, as PostgreSQL does not run as root."""
    made = Path(tempfile.mkdtemp(prefix="btinet-services-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def processes_with(text: str) -> list[str]:
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [command for command in commands if text in command]


def test_prefect_on_postgresql(folder: Path) -> None:
    """A deployment runs, and its run is still there when both servers have been started again."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) and not shutil.which("initdb"):
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    port, pg_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = os.environ | {"PREFECT_API_URL": url, "PREFECT_HOME": str(folder / "home")}
    server = [str(REPOSITORY / "infra/prefect/serve.sh"), str(folder / "data"), str(port), str(pg_port)]
    (folder / "hello.py").write_text(
        "from prefect import flow\n\n@flow\ndef hello(name: str = 'nobody'):\n    return f'hello {name}'\n"
    )
    log, worker_log = folder / "server.log", folder / "worker.log"

    def prefect(*arguments: str) -> str:
        command = [str(BIN / "prefect"), "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def runs() -> list[tuple[str, dict[str, str]]]:
        return [(run["state_name"], run["parameters"]) for run in json.loads(post(f"{url}/flow_runs/filter"))]

    with started(server, log):
        wait_for(lambda: get(f"{url}/health") == b"true", "the Prefect server is up", log)
        prefect("work-pool", "create", "pool", "--type", "process")
        prefect("deploy", "hello.py:hello", "--name", "test", "--pool", "pool")
        with started([str(BIN / "prefect"), "worker", "start", "--pool", "pool"], worker_log, **environment):
            printed = prefect("deployment", "run", "hello/test", "--watch", "-p", "name=world")
        assert "'Completed'" in printed, worker_log.read_text()
        assert runs() == [("Completed", {"name": "world"})]
        assert (folder / "data/password").stat().st_mode & 0o077 == 0
        secret = (folder / "data/password").read_text()
        assert not processes_with(secret)
    assert secret not in log.read_text()
    assert not processes_with(str(folder)), "PostgreSQL has ended with the script"
    with started(server, log):
        wait_for(lambda: get(f"{url}/health") == b"true", "the Prefect server is up again", log)
        assert runs() == [("Completed", {"name": "world"})]


TASK = """
import ray, time
ray.init(log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=1)
def node():
    time.sleep(2)
    return ray.get_runtime_context().get_node_id()

print("nodes", len(set(ray.get([node.remote() for _ in range(2)]))))
"""


def test_ray_asks_for_its_token(folder: Path) -> None:
    port, dashboard = free_port(), free_port()
    url = f"http://127.0.0.1:{dashboard}"
    log = folder / "ray.log"
    command = [str(REPOSITORY / "infra/ray/cluster.sh"), str(folder / "data"), str(port), str(dashboard)]
    token_file = folder / "data/token"

    def client(**auth: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"RAY_ADDRESS": f"127.0.0.1:{port}", "HOME": str(folder)} | auth
        given = [sys.executable, "-c", TASK]
        return subprocess.run(given, env=environment, capture_output=True, text=True, timeout=120)

    def status(token: str | None) -> int:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{url}/api/jobs/", headers=headers), timeout=10
            ) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    with started(command, log):
        wait_for(lambda: "Ray: export RAY_ADDRESS=" in log.read_text(), "the head is up", log)
        token = token_file.read_text()
        assert token_file.stat().st_mode & 0o077 == 0
        wait_for(lambda: log.read_text().count("Ray runtime started") == 2, "both nodes are up", log)

        with_token = client(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token_file))
        assert with_token.stdout == "nodes 2\n", with_token.stderr
        for refused in (
            client(RAY_AUTH_MODE="disabled"),
            client(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64),
        ):
            assert refused.returncode != 0
            assert "nodes" not in refused.stdout
            assert "authenticat" in refused.stderr.lower(), refused.stderr
        assert (status(token), status(None), status("0" * 64)) == (200, 401, 403)
        assert not processes_with(token), "the token is in no command line"
        assert token not in log.read_text()
    assert not processes_with(f"127.0.0.1:{port}"), "both nodes have ended with the script"

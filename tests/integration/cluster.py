"""A Ray cluster on this machine, as a stranger would meet it: a head, a node with one CPU (more on demand), a token."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.conftest import REPOSITORY

BIN = Path(sys.executable).parent
MEMORY = 80_000_000
"""Bytes of a node's object store: Train puts next to nothing there."""


class Nodes:
    """The cluster, and what a test does to it."""

    def __init__(self, stack: ExitStack, scratch: Path) -> None:
        self.stack = stack
        self.scratch = scratch
        self.token = secrets.token_hex(32)
        self.port, dashboard = free_port(), free_port()
        self.url = f"http://127.0.0.1:{dashboard}"
        self.head = self._start("head", "--head", f"--port={self.port}", f"--dashboard-port={dashboard}")
        wait_for(lambda: self.nodes(), "the head is up", 240, poll=1)
        self.workers = [self.add()]

    def add(self) -> subprocess.Popen[bytes]:
        """One more node with one CPU."""
        before = self._ids()
        node = self._start(f"node{time.monotonic_ns()}", f"--address=127.0.0.1:{self.port}")
        wait_for(lambda: self._ids() - before, "another node is up", 240, poll=1)
        return node

    def _ids(self) -> set[str]:
        return {node["raylet"]["nodeId"] for node in self.nodes()}

    def _start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        """``ray start``, with this interpreter as the node's ``python`` and a token for whoever asks."""
        folder = self.scratch / name  # short: sockets lie below
        command = [str(BIN / "ray"), "start", "--block", "--node-ip-address=127.0.0.1", *options]
        command += [f"--object-store-memory={MEMORY}", f"--dashboard-agent-listen-port={free_port()}"]
        if "--head" in options:  # as is usual, nothing is trained on the head
            command += ["--num-cpus=0", f"--temp-dir={folder}", f"--ray-client-server-port={free_port()}"]
        else:
            command += ["--num-cpus=1"]
        environment = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "BTINET_CACHE": str(self.scratch / "cache"),
        }
        return self.stack.enter_context(started(command, self.scratch / f"{name}.log", **self.auth, **environment))

    @property
    def auth(self) -> dict[str, str]:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    @property
    def environment(self) -> dict[str, str]:
        """What a flow needs to reach the cluster."""
        return self.auth | {"RAY_ADDRESS": self.url}

    def get(self, path: str) -> Any:
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())

    def nodes(self) -> list[Any]:
        found = self.get("/nodes?view=summary")["data"]["summary"]
        return [node for node in found if node["raylet"].get("state", "ALIVE") == "ALIVE"]

    def metrics(self) -> str:
        """What Prometheus would read, of all nodes."""
        ports = [node["raylet"]["metricsExportPort"] for node in self.nodes()]
        return "".join(_read(f"http://127.0.0.1:{port}/metrics") for port in ports)

    def jobs(self) -> dict[str, str]:
        """Status of each job of ours, by its name."""
        return {job["submission_id"]: job["status"] for job in self.get("/api/jobs/") if job["submission_id"]}

    def training_workers(self) -> list[psutil.Process]:
        """Processes that train, on either node."""
        return self._processes("RayTrainWorker")

    def drivers(self) -> list[psutil.Process]:
        """The jobs' own processes."""
        return self._processes("btinet.cluster.driver")

    def _processes(self, word: str) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._is_ours(process, word)]

    def _is_ours(self, process: psutil.Process, word: str) -> bool:
        try:
            return word in " ".join(process.cmdline()) and process.environ().get("RAY_AUTH_TOKEN") == self.token
        except (psutil.Error, OSError):
            return False


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        text: str = answer.read().decode()
        return text


def kill_node(node: subprocess.Popen[bytes]) -> None:
    """kill -9 of a node: its raylet and all that runs there."""
    for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    node.wait()


@contextmanager
def ray_cluster() -> Iterator[Nodes]:
    """The cluster for the duration of the block."""
    with (
        tempfile.TemporaryDirectory(prefix="bt-", dir="/tmp", ignore_cleanup_errors=True) as scratch,
        ExitStack() as stack,
    ):
        yield Nodes(stack, Path(scratch))


@contextmanager
def started(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A service for the duration of the block; it and the processes it started are ended after it."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, cwd=REPOSITORY, env=os.environ | environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for member in family:
                if member.is_running():
                    member.send_signal(signal.SIGTERM)
            for member in psutil.wait_procs(family, timeout=15)[1]:
                member.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(check: Callable[[], object], what: str, seconds: float, poll: float = 0.1) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if check():
                return
        except OSError:
            pass
        time.sleep(poll)
    pytest.fail(f"not within {seconds} s: {what}")


_flows: list[subprocess.Popen[bytes]] = []


def start_flow(experiment: Path, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """``python -m flows.full_experiment`` in a process group of its own, printing into ``log``."""
    with log.open("ab") as stream:
        flow = subprocess.Popen(
            [sys.executable, "-m", "flows.full_experiment", str(experiment)],
            cwd=REPOSITORY,
            env=os.environ | environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _flows.append(flow)
    return flow


def kill_flows() -> None:
    """Of those that were started, any that a failed test has left."""
    while _flows:
        flow = _flows.pop()
        if flow.poll() is None:
            os.killpg(flow.pid, signal.SIGKILL)
            flow.wait()

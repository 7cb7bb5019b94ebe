"""A flow's process: the Prefect server it talks to, its end by Ctrl-C or SIGTERM, its cancellation in Prefect."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, refresh_global_settings_context
from prefect.exceptions import PrefectException, TerminationSignal
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Crashed
from rich.console import Console

from btinet.cluster.clusters import Cluster
from btinet.errors import JobError

CANCEL_SECONDS = 5.0
"""How often Prefect is asked for a cancellation."""
OUTPUT_LINES = 20
"""Of a Prefect server that ended, to show."""
LEFT = "terminated; jobs on a cluster go on, and the same command finds them again"

_clusters: list[Cluster] = []
"""The cluster that a flow of this process uses at present, for signal handlers."""


@contextmanager
def cancelling(cluster: Cluster) -> Iterator[None]:
    """While the block runs, a cancellation of the flow run in Prefect (its UI, its API) ends the cluster's jobs.

    Prefect's worker also sends SIGTERM to a flow that is cancelled, but as well when the worker's own machine goes
    down: then the jobs are left to go on, and the next flow finds them.
    """
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None
    flow_run_id = context.flow_run.id
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(CANCEL_SECONDS):
            if _is_cancelled(flow_run_id):
                _end_flow(flow_run_id, Cancelled())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    _clusters.append(cluster)
    try:
        yield
    except TerminationSignal:
        _end_flow(flow_run_id, Cancelled() if _is_cancelled(flow_run_id) else Crashed(message=LEFT))
    finally:
        is_over.set()
        _clusters.remove(cluster)


def _is_cancelled(flow_run_id: UUID) -> bool:
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(flow_run_id).state
    except (httpx.HTTPError, PrefectException):  # the server is being restarted
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def _end_flow(flow_run_id: UUID | None, state: State[Any]) -> NoReturn:
    """End this process at once, with those that it started (an embedded Ray, a Prefect server); tell Prefect.

    A cancelled flow ends its jobs on a cluster; else they go on. A thread that waits for a job cannot be interrupted.
    """
    if state.is_cancelled():
        for cluster in _clusters:
            cluster.stop()
    if flow_run_id is not None:
        with suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run_id, state, force=True)
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    for child in psutil.wait_procs(children, timeout=5)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(130)


@contextmanager
def prefect_api() -> Iterator[None]:
    """The Prefect server that PREFECT_API_URL names, or one for the duration of the block; and signals.

    The server that Prefect itself would start shares this process's group: Ctrl-C would end it before the flow, which
    would then wait minutes for an answer. Ours is in a group of its own, hears that the flow is cancelled, and ends.
    """
    server = None if PREFECT_API_URL.value() else _start_server()

    def stop(signum: int, frame: object) -> None:
        is_interrupt = signum == signal.SIGINT
        message = "interrupted; the same command goes on from the last checkpoint" if is_interrupt else LEFT
        Console(stderr=True).print(message, soft_wrap=True)
        context = FlowRunContext.get()
        _end_flow(
            context.flow_run.id if context and context.flow_run else None,
            Cancelled() if is_interrupt else Crashed(message=LEFT),
        )

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        yield
    finally:
        if server is not None:
            logging.shutdown()  # what is still to be sent to the server
            server.terminate()
            server.wait()


def _start_server() -> subprocess.Popen[bytes]:
    """Start a Prefect server on a free port of localhost and point this process at it.

    Raises:
        JobError: it ended at once.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    with tempfile.TemporaryFile() as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | {"PREFECT_SERVER_UI_API_URL": url},
            start_new_session=True,
            preexec_fn=_end_with_parent,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while not _is_healthy(url):
            if server.poll() is not None:
                output.seek(0)
                said = "\n".join(output.read().decode(errors="replace").splitlines()[-OUTPUT_LINES:])
                raise JobError(
                    f"the Prefect server ended with status {server.returncode}; run again, or name one that runs in "
                    f"PREFECT_API_URL. The end of its output:\n{said}"
                )
            time.sleep(0.2)
    os.environ["PREFECT_API_URL"] = url
    refresh_global_settings_context()
    return server


def _end_with_parent() -> None:
    """In a process that is being started: let it end when this one does, were it by kill -9. (Linux only.)"""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).is_success
    except httpx.HTTPError:
        return False

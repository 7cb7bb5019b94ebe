"""What the orchestrator itself costs: runs that only sleep for a second, through the real flow code.

``python benchmarks/orchestrator.py 200 400`` does 200 and then 400 of them, each time with a Prefect server, an
embedded Ray and a process of its own, and prints seconds and memory a run and the requests to Prefect's API. The runs
are fake in one place, :class:`SleepingCluster`: instead of training, a run is a Ray task that sleeps. Room, order,
threads, retries, Prefect task runs and their logs are the flow's own (``flows.full_experiment.do_runs``).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import httpx
import psutil

from flows.full_experiment import do_runs  # isort: skip  (the package sets what Prefect reads when it is imported)
from flows.process import prefect_api  # isort: skip
import ray
from prefect import flow

from btinet.binding import bind
from btinet.cluster.clusters import OnMessage, Places
from btinet.cluster.session import ray_session
from btinet.config import BoundRun, Experiment, ResourceSettings
from btinet.storage import Storage

AT_ONCE = 16
"""Sleeping needs no CPU: so many runs are let in at a time."""


def nap(seconds: float) -> None:
    """``time.sleep``, which Ray does not take as it is: it is not written in Python."""
    time.sleep(seconds)


class SleepingCluster:
    """An embedded cluster whose runs sleep for a second."""

    dashboard_url: str | None = None

    def __init__(self) -> None:
        self.sleep = ray.remote(nap).options(num_cpus=ray.cluster_resources()["CPU"] / AT_ONCE)

    def places(self, resources: ResourceSettings) -> Places:
        return Places(AT_ONCE, 0)

    def going(self, bounds: Sequence[BoundRun], root: Storage) -> set[str]:
        return set()

    def do(self, bound: BoundRun, root: Storage, resources: ResourceSettings, on_message: OnMessage) -> None:
        ray.get(self.sleep.remote(1.0))

    def stop(self) -> None:
        pass


class Requests:
    """Counts what this process asks of Prefect's API."""

    def __init__(self) -> None:
        self.count = 0
        for client in (httpx.Client, httpx.AsyncClient):
            self._wrap(client)

    def _wrap(self, client: Any) -> None:
        send = client.send

        def counting(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            return send(*arguments, **options)

        client.send = counting


class Memory:
    """The most that this process, and all that it started, held; sampled every half second."""

    def __init__(self) -> None:
        self.own = self.all = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            own, total = process.memory_info().rss, 0
            for child in process.children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.own, self.all = max(self.own, own), max(self.all, own + total)
            time.sleep(0.5)


def measure(count: int) -> dict[str, float]:
    """Do ``count`` runs in this process."""
    experiment = Experiment.model_validate(
        {"name": "sleep", "preset": "tiny", "datasets": [{"name": "phantom"}], "seeds": list(range(count))}
    )
    bounds = [bind(run, "none", {}) for run in experiment.runs()]
    requests, memory = Requests(), Memory()
    found: dict[str, float] = {"runs": count}

    @flow(name="dry-run", log_prints=False)
    def dry_run(folder: str) -> None:
        with ray_session():
            cluster = SleepingCluster()
            before = requests.count
            started, cpu = time.perf_counter(), time.process_time()
            failures = do_runs(cluster, ResourceSettings(max_parallel_runs=AT_ONCE), bounds, Storage(folder))
            assert not failures, failures
            found["seconds"] = time.perf_counter() - started
            found["cpu_seconds_of_flow"] = time.process_time() - cpu
            found["requests"] = requests.count - before

    with tempfile.TemporaryDirectory() as folder, prefect_api():
        dry_run(folder)
    return found | {"flow_MiB": memory.own / 2**20, "all_MiB": memory.all / 2**20}


def main() -> None:
    counts = [int(count) for count in sys.argv[1:]] or [200, 400]
    if len(counts) == 1:
        print(json.dumps(measure(counts[0])))
        return
    print("runs  seconds  beyond sleep, s/run  flow's CPU, ms/run  requests/run  flow MiB  all MiB")
    for count in counts:  # each in a process of its own, so that memory starts anew
        done = subprocess.run(
            [sys.executable, __file__, str(count)],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        row = json.loads(done.stdout.splitlines()[-1])
        beyond = (row["seconds"] - count / AT_ONCE) / count
        print(
            f"{count:4}  {row['seconds']:7.1f}  {beyond:19.3f}  {1000 * row['cpu_seconds_of_flow'] / count:18.1f}  "
            f"{row['requests'] / count:12.2f}  {row['flow_MiB']:8.0f}  {row['all_MiB']:7.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

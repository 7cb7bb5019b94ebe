"""Where whole runs are done: on a cluster as jobs that outlive this process, or on an embedded one that ends with it.

The two differ in one thing: who calls :func:`btinet.cluster.jobs.run_on_cluster`. On a cluster each run is a job of its
own (Ray's Jobs API, over HTTP), and the job's process calls it: the flow may die and find the job again by its name.
An embedded cluster dies with the flow, so there the flow's own threads call it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import NamedTuple, Protocol

import btinet.cluster.session  # noqa: F401  isort: skip  (sets what Ray reads when it is imported)
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from btinet.cluster.driver import job_file
from btinet.cluster.jobs import begin, last_failure, run_on_cluster
from btinet.cluster.package import Package, package_to_send
from btinet.cluster.session import ray_session
from btinet.config import BoundRun, ResourceSettings, json_hash
from btinet.errors import InputError, JobError, NotConnectedError
from btinet.progress import watching, write_failure
from btinet.status import failure_file, is_finished, latest_message, progress_file, steps, told
from btinet.storage import Storage

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 600.0
"""How long the cluster's head may be out of reach before a run that it was doing counts as lost."""
ANSWER_SECONDS = 30.0
STOP_SECONDS = 20.0
DRIVER_MEMORY = 512 * 2**20
"""What a job's own process is counted with, in bytes. It makes Ray spread them over the nodes: by default all would be
on the head."""

OnMessage = Callable[[str, bool], None]
"""Takes a line about how a run goes, and whether it should be told whatever was told just before."""
RUNNING = (JobStatus.PENDING, JobStatus.RUNNING)


class Places(NamedTuple):
    """How many workers of a run's size the cluster holds."""

    total: int
    taken: int
    """By anybody."""


class Cluster(Protocol):
    """Where runs are done."""

    dashboard_url: str | None

    def places(self, resources: ResourceSettings) -> Places:
        """Count places for workers of this size, as the cluster is now."""

    def going(self, bounds: Sequence[BoundRun], root: Storage) -> set[str]:
        """The ids of the runs that go on already, for a process that was here before, and so have their places."""

    def do(self, bound: BoundRun, root: Storage, resources: ResourceSettings, on_message: OnMessage) -> None:
        """Do a run from where it is to its predictions, telling how it goes.

        Raises:
            InputError: doing it again is of no use.
            JobError: it failed; doing it again goes on from its last checkpoint.
        """

    def stop(self) -> None:
        """End the runs that this process waits for."""


@contextmanager
def open_cluster() -> Iterator[Cluster]:
    """The cluster that RAY_ADDRESS names (``http://HEAD:8265``, or ``HEAD:6379``), else an embedded one.

    Raises:
        InputError: no cluster answers there, or it refuses our token.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        with ray_session() as session:
            yield EmbeddedCluster(session.dashboard_url)
        return
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, AuthenticationError, requests.RequestException) as error:
        raise InputError(
            f"RAY_ADDRESS={address}: cannot connect ({error}); check that the cluster is up, that this is its "
            "dashboard's address (http://HEAD:8265) and, if it asks for a token, that RAY_AUTH_MODE=token is set and "
            "RAY_AUTH_TOKEN is its token; or unset RAY_ADDRESS to train on an embedded one"
        ) from error
    with package_to_send() as package:
        yield JobCluster(client, package)


class EmbeddedCluster:
    """A cluster of this process: its runs are done by the threads that ask for them."""

    def __init__(self, dashboard_url: str | None) -> None:
        self.dashboard_url = dashboard_url

    def places(self, resources: ResourceSettings) -> Places:
        """See :class:`Cluster`; nobody else is here."""
        return Places(_held(ray.cluster_resources(), resources), 0)

    def going(self, bounds: Sequence[BoundRun], root: Storage) -> set[str]:
        """See :class:`Cluster`; nobody was here before."""
        return set()

    def do(self, bound: BoundRun, root: Storage, resources: ResourceSettings, on_message: OnMessage) -> None:
        """See :class:`Cluster`."""

        def telling(step: str) -> AbstractContextManager[None]:
            file = progress_file(root, bound.run_id, step)
            return watching(file, lambda content: on_message(*told(step, content)))

        with ExitStack() as stack:
            for step in steps(bound.run):
                stack.enter_context(telling(step))
            run_on_cluster(bound, root, resources)

    def stop(self) -> None:
        """Nothing to do: it ends with this process."""


class JobCluster:
    """A cluster that is there before and after this process; each run is a job on it."""

    def __init__(self, client: JobSubmissionClient, package: Package) -> None:
        self.client = client
        self.package = package
        self.dashboard_url: str | None = client.get_address()
        self.jobs: set[str] = set()
        """Those that this process is about to submit, or waits for."""
        self.is_stopping = False

    def places(self, resources: ResourceSettings) -> Places:
        """See :class:`Cluster`; what others hold on a shared cluster is taken."""
        answer = self.client._do_request("GET", "/nodes?view=summary", timeout=ANSWER_SECONDS)
        answer.raise_for_status()
        nodes = answer.json()["data"]
        total = taken = 0
        for node in nodes["summary"]:
            raylet = node["raylet"]
            if raylet.get("state", "ALIVE") != "ALIVE":
                continue
            has = raylet.get("resourcesTotal", {})
            used = _used(nodes["nodeLogicalResources"].get(raylet["nodeId"], ""))
            held = _held(has, resources)
            total += held
            taken += held - _held({name: has[name] - used.get(name, 0) for name in has}, resources)
        return Places(total, taken)

    def going(self, bounds: Sequence[BoundRun], root: Storage) -> set[str]:
        """See :class:`Cluster`; one request, however many runs."""
        answer = self.client._do_request("GET", "/api/jobs/", timeout=ANSWER_SECONDS)
        answer.raise_for_status()
        jobs = [job["submission_id"] for job in answer.json() if job["submission_id"] and job["status"] in RUNNING]
        names = {job.rpartition("-")[0]: job for job in jobs}  # without the number of the attempt
        found = {bound.run_id: name for bound in bounds if (name := job_name(bound, root)) in names}
        self.jobs.update(names[name] for name in found.values())
        return set(found)

    def do(self, bound: BoundRun, root: Storage, resources: ResourceSettings, on_message: OnMessage) -> None:
        """See :class:`Cluster`; a job of this run that is still going is found again and waited for."""
        name = job_name(bound, root)
        attempt, details = 0, None
        while (found := self._details(f"{name}-{attempt + 1}")) is not None:
            attempt, details = attempt + 1, found
        if details is not None and details.status in RUNNING:
            job = f"{name}-{attempt}"
            self.jobs.add(job)
            on_message(f"found its job {job}, {details.status.value.lower()}", True)
        else:
            job = f"{name}-{attempt + 1}"
            self._submit(job, bound, root, resources)
            on_message(f"job {job} submitted", True)
        self._wait(job, bound, root, on_message)

    def stop(self) -> None:
        """See :class:`Cluster`; no job is submitted from now on. Returns when all have ended, or after STOP_SECONDS."""
        self.is_stopping = True
        deadline = time.monotonic() + STOP_SECONDS
        with ThreadPoolExecutor(16) as pool:
            while self.jobs and time.monotonic() < deadline:
                list(pool.map(self._stop, list(self.jobs)))
                time.sleep(0.5)

    def _stop(self, job: str) -> None:
        """Ask for a job's end; it is ours no more when it has ended."""
        with suppress(RuntimeError, requests.RequestException):  # not known yet: its submission is on the way
            self.client.stop_job(job)
            if self.client.get_job_status(job) not in RUNNING:
                self.jobs.discard(job)

    def _details(self, name: str) -> JobDetails | None:
        """The job of this name; None where there never was one."""
        answer = self.client._do_request("GET", f"/api/jobs/{name}", timeout=ANSWER_SECONDS)
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        return JobDetails(**answer.json())

    def _submit(self, name: str, bound: BoundRun, root: Storage, resources: ResourceSettings) -> None:
        begin(bound, root)
        job_file(root, bound.run_id).write_json(
            {"bound": bound.model_dump(mode="json"), "resources": resources.model_dump(mode="json")}
        )
        arguments = shlex.join([json.dumps(root.reference), bound.run_id])
        deadline = time.monotonic() + PATIENCE_SECONDS
        self.jobs.add(name)  # before it is submitted, so that stop() does not miss it
        while True:
            if self.is_stopping:
                self.jobs.discard(name)
                raise NotConnectedError(f"{name} is not submitted: the flow was cancelled")
            try:
                self.client.submit_job(
                    entrypoint=f"python -m btinet.cluster.driver {arguments}",
                    submission_id=name,
                    runtime_env={"py_modules": [str(self.package.folder)]},
                    metadata={"run": bound.run.key, "storage": root.url},
                    entrypoint_memory=DRIVER_MEMORY,
                )
                return
            except RuntimeError as error:  # Ray gives no finer one
                if "already exists" in str(error):  # another flow was faster, or the answer to our request was lost
                    return
                if (
                    "No available agent" not in str(error) or time.monotonic() > deadline
                ):  # a head that has just started
                    raise JobError(f"{name} could not be submitted: {error}") from error
            time.sleep(POLL_SECONDS)

    def _wait(self, name: str, bound: BoundRun, root: Storage, on_message: OnMessage) -> None:
        """Pass on how the job goes, until it ends; look at what it left."""
        told = reached = time.time()
        while True:
            try:
                details = self._details(name)
                reached = time.time()
            except requests.RequestException as error:
                if time.time() - reached > PATIENCE_SECONDS:
                    raise JobError(f"{name}: no answer from {self.dashboard_url}: {error}") from error
            else:
                if details is None or details.status not in RUNNING:
                    break
            if (message := latest_message(bound, root, told)) is not None:
                told = time.time()
                on_message(message, False)
            time.sleep(POLL_SECONDS)
        self.jobs.discard(name)
        if details is not None and details.status == JobStatus.SUCCEEDED and is_finished(bound, root):
            return
        self._explain(name, details, bound, root)

    def _explain(self, name: str, details: JobDetails | None, bound: BoundRun, root: Storage) -> None:
        """Raise what made the job fail."""
        failure = last_failure(bound, root)
        if details is None:
            reason = "the cluster knows it no more: its head was started anew"
        else:
            reason = f"{details.status.value.lower()}: {details.message}"
        log = ""
        with suppress(RuntimeError, requests.RequestException):
            log = "\n".join(self.client.get_job_logs(name).splitlines()[-10:])
        if failure is None:
            with suppress(OSError):
                write_failure(failure_file(root, bound.run_id), "job", reason, is_final=False)
        raise JobError(f"{name} {reason}\n{failure or ''}\n{log}")


def job_name(bound: BoundRun, root: Storage) -> str:
    """What the jobs of a run are called, before the number of the attempt."""
    return f"btinet-{bound.run_id}-{json_hash([root.url, (root.endpoint or '').rstrip('/')])[:6]}"


def _held(has: dict[str, float], resources: ResourceSettings) -> int:
    """How many workers of this size fit into what one node has."""
    counts = [has.get("CPU", 0) / resources.cpus_per_worker]
    if resources.gpus_per_worker:
        counts.append(has.get("GPU", 0) / resources.gpus_per_worker)
    return int(min(counts) + 1e-6)


def _used(usage: str) -> dict[str, float]:
    """What is used of a node, from Ray's words for it: lines like ``1.0/2.0 CPU``."""
    return {name: float(used) for used, name in re.findall(r"^\s*([\d.]+)/[\d.]+ (CPU|GPU)\b", usage, re.MULTILINE)}

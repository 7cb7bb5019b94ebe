"""Runs as jobs of a cluster whose head answers as a test wants, and what a worker leaves that fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from ray.job_submission import JobStatus, JobType

from btinet.binding import bind
from btinet.cluster import clusters
from btinet.cluster.clusters import JobCluster
from btinet.cluster.package import Package
from btinet.cluster.worker import leaving_failure
from btinet.config import BoundRun, Experiment, ResourceSettings
from btinet.errors import InputError, JobError, NotConnectedError
from btinet.progress import read_failure, write_failure
from btinet.status import failure_file, run_states
from btinet.storage import Storage
from flows.full_experiment import _Room

RESOURCES = ResourceSettings()


class Head:
    """A cluster's head: it takes jobs, slowly if wanted, which run until they are stopped."""

    def __init__(self, status: JobStatus = JobStatus.RUNNING) -> None:
        self.first = status
        self.jobs: dict[str, JobStatus] = {}
        self.submission_seconds = 0.0
        self.submitting = threading.Event()
        self.http_status = 200

    def get_address(self) -> str:
        return "http://head:8265"

    def submit_job(self, submission_id: str, **_: Any) -> None:
        self.submitting.set()
        time.sleep(self.submission_seconds)
        self.jobs[submission_id] = self.first

    def stop_job(self, name: str) -> None:
        self.get_job_status(name)
        self.jobs[name] = JobStatus.STOPPED

    def get_job_status(self, name: str) -> JobStatus:
        if name not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {name} does not exist")
        return self.jobs[name]

    def get_job_logs(self, name: str) -> str:
        return ""

    def _do_request(self, method: str, path: str, timeout: float) -> requests.Response:
        name = path.rpartition("/")[2]
        answer = requests.Response()
        answer.status_code = self.http_status if name in self.jobs or not path.startswith("/api/jobs/btinet") else 404
        content = {
            "type": JobType.SUBMISSION,
            "submission_id": name,
            "entrypoint": "",
            "message": "lost",
            "start_time": 0,
        }
        answer.json = lambda: content | {"status": self.jobs[name]}  # type: ignore[method-assign]
        return answer


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "POLL_SECONDS", 0.05)


@pytest.fixture
def root(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "store"))


def experiment(runs: int = 1) -> Experiment:
    return Experiment.model_validate(
        {"name": "e", "preset": "tiny", "datasets": [{"name": "phantom"}], "seeds": list(range(runs))}
    )


def bounds(runs: int = 1) -> list[BoundRun]:
    return [bind(run, "0123456789abcdef", {}) for run in experiment(runs).runs()]


def cluster(head: Head) -> JobCluster:
    return JobCluster(head, Package(Path("/nowhere"), 0, 0))  # type: ignore[arg-type]


def doing(there: JobCluster, bound: BoundRun, root: Storage, errors: list[Exception]) -> None:
    """As a task does, which tries again after a failure."""
    for _ in range(2):
        try:
            there.do(bound, root, RESOURCES, lambda message, is_due: None)
        except JobError as error:
            errors.append(error)


def test_cancelled_while_jobs_are_submitted(root: Storage) -> None:
    """Ctrl-C a moment after the start: no job goes on, those on their way included, and none comes after."""
    head, errors = Head(), []
    head.submission_seconds = 0.3
    there = cluster(head)
    threads = [threading.Thread(target=doing, args=(there, bound, root, errors)) for bound in bounds(100)]
    for thread in threads:
        thread.start()
    head.submitting.wait()
    began = time.monotonic()
    there.stop()
    assert time.monotonic() - began < 5
    for thread in threads:
        thread.join()
    assert set(head.jobs.values()) == {JobStatus.STOPPED}
    assert len(errors) == 200 and isinstance(errors[-1], NotConnectedError), "nothing is submitted again"


def test_cancelled_before_a_job_is_found_again(root: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of an earlier flow are stopped, though nobody waits for them yet."""
    head, (bound,) = Head(), bounds()
    name = f"{clusters.job_name(bound, root)}-2"
    head.jobs[name] = JobStatus.RUNNING
    listed = requests.Response()
    listed.status_code = 200
    listed.json = lambda: [{"submission_id": name, "status": JobStatus.RUNNING}]  # type: ignore[method-assign]
    monkeypatch.setattr(head, "_do_request", lambda *_, **__: listed)
    there = cluster(head)
    assert there.going([bound], root) == {bound.run_id}
    there.stop()
    assert head.jobs[name] == JobStatus.STOPPED


def test_head_that_does_not_know_its_nodes_now() -> None:
    """Ray answers 500 while its store is away: runs wait for room."""
    head = Head()
    head.http_status = 500
    with pytest.raises(OSError, match="500"):
        cluster(head).places(RESOURCES)
    assert not _Room(cluster(head), RESOURCES)._has_room()


def test_failure_of_an_earlier_job_is_not_this_one_s(root: Storage) -> None:
    (bound,) = bounds()
    write_failure(failure_file(root, bound.run_id), "stage1", "mended since", is_final=True)
    with pytest.raises(JobError, match="failed: lost"):
        cluster(Head(JobStatus.FAILED)).do(bound, root, RESOURCES, lambda message, is_due: None)


def test_job_that_failed_before_anything_is_failed(root: Storage) -> None:
    (bound,) = bounds()
    with pytest.raises(JobError):
        cluster(Head(JobStatus.FAILED)).do(bound, root, RESOURCES, lambda message, is_due: None)
    (state,) = run_states(experiment(), root)
    assert state.word == "failed" and state.failure is not None and "lost" in state.failure.message


class TestWorker:
    """What a worker leaves, alone and as one of two."""

    @pytest.fixture
    def fail(self, root: Storage, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception, int], None]:
        def fail(error: Exception, size: int) -> None:
            monkeypatch.setattr("btinet.ranks.Ranks", lambda: type("Ranks", (), {"size": size}))
            with leaving_failure(root, "run", "stage1"):
                raise error

        return fail

    def test_alone(self, fail: Callable[[Exception, int], None], root: Storage) -> None:
        """Ray is not to try again."""
        fail(InputError("bad"), 1)
        failure = read_failure(failure_file(root, "run"))
        assert failure is not None and failure.is_final

    def test_one_of_two(self, fail: Callable[[Exception, int], None], root: Storage) -> None:
        """Ray is to end the other, which waits for this one; what that says then is not the reason."""
        with pytest.raises(InputError):
            fail(InputError("bad"), 2)
        with pytest.raises(RuntimeError):
            fail(RuntimeError("connection closed by peer"), 2)
        failure = read_failure(failure_file(root, "run"))
        assert failure is not None and (failure.is_final, failure.message) == (True, "bad")

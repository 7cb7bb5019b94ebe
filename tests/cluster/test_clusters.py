"""What is sent to a cluster, who is let in, what jobs are called. (Jobs on a real cluster: tests/integration.)"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import btinet
from btinet.binding import bind
from btinet.cluster.clusters import Places, _held, _used, job_name, open_cluster
from btinet.cluster.package import SENT, package_to_send
from btinet.cluster.session import ray_session
from btinet.config import BoundRun, Experiment, ResourceSettings
from btinet.errors import InputError
from btinet.storage import Storage
from flows.full_experiment import _Room

PACKAGE = Path(btinet.__file__).parent


def test_the_package_and_nothing_else_is_sent() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=PACKAGE, capture_output=True, text=True, check=True
    ).stdout.split()
    junk = PACKAGE / "credentials.env"
    junk.write_text("AWS_SECRET_ACCESS_KEY=no")
    try:
        with package_to_send() as package:
            sent = {str(file.relative_to(package.folder)) for file in package.folder.rglob("*") if file.is_file()}
            assert package.folder.name == "btinet"
            assert package.files == len(sent)
            assert package.bytes == sum((package.folder / name).stat().st_size for name in sent)
            assert f"{package.files} files, {package.bytes / 1024:.0f} KiB" in str(package)
    finally:
        junk.unlink()
    assert not package.folder.exists()
    assert sent >= set(tracked), "the package would not work without them"
    assert {Path(name).suffix for name in sent} == set(SENT)


@pytest.mark.parametrize(
    "cpus, gpus, settings, expected",
    [
        (8, 0, {"cpus_per_worker": 1}, 8),
        (8, 0, {"cpus_per_worker": 3}, 2),
        (8, 1, {"cpus_per_worker": 1, "gpus_per_worker": 0.25}, 4),
        (8, 1, {"cpus_per_worker": 1, "gpus_per_worker": 0.1}, 8),
        (64, 0.3, {"cpus_per_worker": 1, "gpus_per_worker": 0.1}, 3),
        (8, 0, {"cpus_per_worker": 1, "gpus_per_worker": 1}, 0),
        (0, 0, {"cpus_per_worker": 1}, 0),
    ],
)
def test_workers_that_fit_on_a_node(cpus: float, gpus: float, settings: dict[str, float], expected: int) -> None:
    assert _held({"CPU": cpus, "GPU": gpus}, ResourceSettings.model_validate(settings)) == expected


def test_used_as_ray_words_it() -> None:
    usage = "1.0/4.0 CPU (1.0 used of 1.0 reserved in placement groups)\n0.5/2.0 GPU\n0B/17.84GiB memory\n"
    assert _used(usage) == {"CPU": 1.0, "GPU": 0.5}
    assert _used("") == {}


class Counted:
    """A cluster that holds two, and whose places others may take."""

    dashboard_url = None

    def __init__(self) -> None:
        self.now = Places(2, 0)

    def places(self, resources: ResourceSettings) -> Places:
        return self.now


def enters(room: _Room) -> bool:
    """Whether one more is let in within a moment."""
    thread = threading.Thread(target=room.wait, daemon=True)
    thread.start()
    thread.join(0.3)
    return not thread.is_alive()


def make_room(**settings: object) -> tuple[_Room, Counted]:
    cluster = Counted()
    return _Room(cluster, ResourceSettings.model_validate(settings)), cluster  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.full_experiment.ROOM_SECONDS", 0.05)


def test_room_for_as_many_as_fit() -> None:
    room, cluster = make_room()
    assert enters(room) and enters(room)
    assert not enters(room), "those inside have not taken their places yet, but will"
    cluster.now = Places(3, 2)  # a node joins, and whoever was waiting enters
    time.sleep(0.3)
    assert room.inside == 3


def test_no_room_where_others_are() -> None:
    room, cluster = make_room()
    cluster.now = Places(2, 2)
    assert not enters(room)


def test_cap() -> None:
    room, _ = make_room(max_parallel_runs=1)
    assert enters(room) and not enters(room)
    room.leave(None)  # type: ignore[arg-type]
    time.sleep(0.3)
    assert room.inside == 1, "the one that waited is in"
    assert room.total() == 1


def test_a_run_that_has_its_places_enters_a_full_cluster() -> None:
    room, cluster = make_room()
    cluster.now = Places(2, 2)
    room.enter()
    assert room.inside == 1 and not enters(room)


def test_runs_of_several_workers() -> None:
    room, cluster = make_room(workers=2)
    assert room.total() == 1
    assert enters(room) and not enters(room)
    cluster.now = Places(1, 0)
    with pytest.raises(InputError, match="needs 2 worker"):
        room.total()


def bound(seed: int = 1) -> BoundRun:
    experiment = Experiment.model_validate(
        {"name": "e", "preset": "tiny", "datasets": [{"name": "phantom"}], "seeds": [seed]}
    )
    return bind(experiment.runs()[0], "0123456789abcdef", {})


def test_job_names(tmp_path: Path) -> None:
    """The same run in another storage is another job; nothing else is."""
    here, there = Storage(str(tmp_path / "a")), Storage(str(tmp_path / "b"))
    assert job_name(bound(), here) == job_name(bound(), here)
    assert bound().run_id in job_name(bound(), here)
    assert len({job_name(bound(), here), job_name(bound(), there), job_name(bound(2), here)}) == 3


def test_job_names_of_one_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the region is named, and how the endpoint is written, does not make it another."""
    name = job_name(bound(), Storage("s3://bucket/prefix", "http://host:9"))
    assert name == job_name(bound(), Storage("s3://bucket/prefix/", "http://host:9/"))
    assert name != job_name(bound(), Storage("s3://bucket/prefix"))
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert name == job_name(bound(), Storage("s3://bucket/prefix", "http://host:9"))


@pytest.mark.parametrize("opening", [open_cluster, ray_session])
def test_no_cluster_there(opening: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"RAY_ADDRESS=http://127\.0\.0\.1:9: "), opening():  # type: ignore[attr-defined]
        pass

"""Object storage that fails while a training writes to it: a real S3 server behind a proxy that makes the faults."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from btinet.storage import Storage
from tests.conftest import S3Server
from tests.integration.cluster import wait_for
from tests.integration.proxy import Proxy, proxy_before

pytestmark = pytest.mark.slow

EPOCHS = 12
FIELDS: dict[str, Any] = {"train": {"batch_size": 8, "stage1": {"epochs": EPOCHS, "patience": EPOCHS}}}
MODEL = "stage1/model.safetensors"


@pytest.fixture
def proxy(s3_env: S3Server) -> Iterator[Proxy]:
    with proxy_before(s3_env.endpoint) as proxy:
        yield proxy


def start(experiment: Path, log: Path) -> subprocess.Popen[bytes]:
    """Stage 1 in a plain process."""
    btinet = str(Path(sys.executable).with_name("btinet"))
    command = [btinet, "train", "phantom/btinet/full/42", "--stage", "1", "--in-process", "-e", str(experiment)]
    with log.open("ab") as stream:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)


@pytest.fixture
def undisturbed(write_experiment: Callable[..., Path], tmp_path: Path) -> bytes:
    """The model where nothing happens."""
    assert start(write_experiment(**FIELDS), tmp_path / "undisturbed.log").wait(600) == 0
    (file,) = (tmp_path / "results").glob(f"runs/*/{MODEL}")
    return file.read_bytes()


class Run:
    """A training through the proxy, looked at past it."""

    def __init__(self, s3: S3Server, proxy: Proxy, experiment: Callable[..., Path], log: Path) -> None:
        url = f"s3://{s3.bucket}/{log.parent.name}"
        self.root = Storage(url, s3.endpoint)
        self.experiment = experiment(storage={"url": url, "endpoint": proxy.endpoint}, **FIELDS)
        self.log = log
        self.process = start(self.experiment, log)

    def wait_for_epoch(self, epoch: int) -> None:
        def reached() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return bool(self.root.find(f"epoch-{epoch:04d}.json"))

        wait_for(reached, f"checkpoint {epoch}: {self.log.read_text()}", 300)

    def again(self) -> None:
        self.process = start(self.experiment, self.log)

    def model(self) -> bytes:
        assert self.process.wait(600) == 0, self.log.read_text()[-3000:]
        (file,) = self.root.find(MODEL)
        return file.read_bytes()


@pytest.fixture
def run(s3_env: S3Server, proxy: Proxy, write_experiment: Callable[..., Path], tmp_path: Path) -> Iterator[Run]:
    run = Run(s3_env, proxy, write_experiment, tmp_path / "train.log")
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()


def test_errors_refusals_and_slowness(undisturbed: bytes, run: Run, proxy: Proxy) -> None:
    """One after the other, five seconds each, in one training that notices none of it."""
    for epoch, mode in enumerate(("500", "503", "refused", "slow"), start=1):
        run.wait_for_epoch(epoch)
        before = proxy.faults
        proxy.set(mode)
        time.sleep(5)
        proxy.set("pass")
        assert proxy.faults > before, f"nothing was asked of the storage while it was {mode}"
    assert run.model() == undisturbed


def test_killed_during_an_upload(undisturbed: bytes, run: Run, proxy: Proxy) -> None:
    """The storage takes a checkpoint and never answers; the process is killed. Nobody sees that checkpoint."""
    run.wait_for_epoch(2)
    before = proxy.faults
    proxy.set("stuck")
    wait_for(lambda: proxy.faults > before, "something is being uploaded", 60)
    run.process.kill()
    run.process.wait()
    proxy.set("pass")
    for marker in run.root.find(".json"):
        assert marker.read_json()
    for table in run.root.find(".parquet"):
        table.read_table()  # no reader finds half a file
    run.again()
    assert run.model() == undisturbed


def test_expired_credentials(undisturbed: bytes, run: Run, proxy: Proxy) -> None:
    """One message that says what to do; once they are renewed it goes on."""
    run.wait_for_epoch(2)
    proxy.set("expired")
    assert run.process.wait(120) == 2
    printed = run.log.read_text()
    assert "token has expired" in printed and "renew" in printed and "Traceback" not in printed
    proxy.set("pass")
    run.again()
    assert run.model() == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for three checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk(undisturbed: bytes, small_disk: Path, write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    """One message that says what to do, and nothing half-written; with room again it goes on."""
    results, log = small_disk / "results", tmp_path / "train.log"
    experiment = write_experiment(storage={"url": str(results)}, **FIELDS)
    process = start(experiment, log)
    wait_for(lambda: bool(list(results.glob("runs/*/stage1/checkpoints/epoch-0002.json"))), "checkpoint 2", 300)
    with pytest.raises(OSError, match="No space left"), (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
    assert process.wait(300) == 1
    printed = log.read_text()
    assert "No space left on device" in printed and "make room" in printed and "Traceback" not in printed
    assert not list(results.rglob("*.part*"))
    (small_disk / "ballast").unlink()
    assert start(experiment, log).wait(600) == 0, log.read_text()[-3000:]
    (model,) = results.glob(f"runs/*/{MODEL}")
    assert model.read_bytes() == undisturbed

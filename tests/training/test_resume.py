"""A run that was killed and started again ends with the weights, to the bit, of one that was not."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from btinet.errors import InputError
from btinet.partitions import read_partition
from btinet.progress import Progress
from btinet.storage import Storage
from btinet.training.checkpoint import Checkpoints
from btinet.training.outputs import epochs_file, finished_stage
from tests.training.micro import KEY, Bench, bench, files

EPOCHS = 4
CHANGES = {
    "train": {"batch_size": 7, "plateau_patience": 1, "stage1": {"epochs": EPOCHS}, "stage2": {"epochs": EPOCHS}}
}
STAGES = pytest.mark.parametrize("stage", [1, 2])


class Killed(Exception):
    """Ends a training where a test wants it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Both stages, never interrupted."""
    whole = bench(tmp_path_factory.mktemp("whole"), tmp_path_factory.getbasetemp(), **CHANGES)
    whole.train(1, 2)
    return whole


@pytest.fixture
def new(whole: Bench, micro: Callable[..., Bench]) -> Callable[[int], Bench]:
    """Makes the same run, before a stage."""

    def make(stage: int) -> Bench:
        made = micro(**CHANGES)
        if stage == 2:
            shutil.copytree(whole.folder(1), made.folder(1))
            shutil.copytree(Path(whole.root.path) / "results", Path(made.root.path) / "results")
            epochs_file(made.root, made.bound, 2).remove()
        return made

    return make


def at(epoch: int, step: int) -> Callable[[Progress], None]:
    """Kills after this step."""

    def on_progress(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (epoch, step):
            raise Killed

    return on_progress


def checkpoints(run: Bench, stage: int) -> list[str]:
    return sorted(file.name for file in (run.folder(stage) / "checkpoints").glob("epoch-*"))


def history(run: Bench, stage: int) -> pa.Table:
    return read_partition(epochs_file(run.root, run.bound, stage)).drop_columns(["seconds"])


def resume(run: Bench, stage: int) -> int:
    """Trains to the end; returns the epoch in which that began."""
    seen: list[int] = []
    run.train(stage, on_progress=lambda progress: seen.append(progress.epoch))
    return seen[0]


def assert_same(run: Bench, whole: Bench, stage: int) -> None:
    name = "model.safetensors"
    assert (run.folder(stage) / name).read_bytes() == (whole.folder(stage) / name).read_bytes()
    assert history(run, stage).equals(history(whole, stage))
    done, expected = (finished_stage(bench.bound, stage, bench.root) for bench in (run, whole))
    assert done is not None and expected is not None
    assert done.metrics == expected.metrics
    assert not (run.folder(stage) / "checkpoints").exists()


@STAGES
def test_killed_process(whole: Bench, new: Callable[[int], Bench], stage: int) -> None:
    run = new(stage)
    arguments = ["train", KEY, "--stage", str(stage), "--experiment", str(run.file), "--in-process"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from btinet.cli import main; main()", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not (run.folder(stage) / "checkpoints/epoch-0001.json").exists():
            assert process.poll() is None, "it ended before its first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(0.05)  # into the second epoch, which takes several times that
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (run.folder(stage) / "progress.json").exists()
    assert finished_stage(run.bound, stage, run.root) is None
    newest = int(checkpoints(run, stage)[-1][6:10])
    assert resume(run, stage) == newest + 1 <= EPOCHS
    assert_same(run, whole, stage)


def flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def kill_before_writing(run: Bench, is_time: Callable[[Storage], bool]) -> None:
    """Train stage 1 until a file is about to be written that it is time for."""
    plain = Storage.write_bytes

    def write_bytes(file: Storage, data: bytes) -> None:
        if is_time(file):
            raise Killed
        plain(file, data)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Storage, "write_bytes", write_bytes)
        run.train(1)


@STAGES
@pytest.mark.parametrize("epoch, step", [(1, 1), (3, 2)])
def test_stopped_in_an_epoch(whole: Bench, new: Callable[[int], Bench], stage: int, epoch: int, step: int) -> None:
    """Once, or a second time in the epoch after."""
    run = new(stage)
    with pytest.raises(Killed):
        run.train(stage, on_progress=at(epoch, step))
    if epoch < EPOCHS:
        epoch += 1
        with pytest.raises(Killed):
            run.train(stage, on_progress=at(epoch, 1))
    assert resume(run, stage) == epoch
    assert_same(run, whole, stage)


@pytest.mark.parametrize(
    "writes, begins",
    [
        (r"best-0001.*", 1),
        (r"epoch-0002\.pt", 2),
        (r"epoch-0003\.json", 3),  # a checkpoint without its marker is not read
        (r".*-stage1\.parquet", 2),
        (r"receipt\.json", None),
    ],
)
def test_stopped_before_writing(whole: Bench, new: Callable[[int], Bench], writes: str, begins: int | None) -> None:
    """Every moment between two files; ``begins`` is the epoch to repeat, None where all were done."""
    run = new(1)
    kill_before_writing(run, lambda file: re.fullmatch(writes, file.name) is not None)
    if begins is None:
        run.train(1, on_progress=at(EPOCHS, 1))  # no step is repeated
    else:
        assert resume(run, 1) == begins
    assert_same(run, whole, 1)


def test_stopped_before_the_last_epoch_is_in_the_history(whole: Bench, new: Callable[[int], Bench]) -> None:
    run = new(1)
    last = run.folder(1) / f"checkpoints/epoch-{EPOCHS:04d}.json"
    kill_before_writing(run, lambda file: file.name.endswith("-stage1.parquet") and last.exists())
    run.train(1, on_progress=at(EPOCHS, 1))  # no step is repeated
    assert_same(run, whole, 1)


def test_stopped_before_the_checkpoints_are_removed(
    new: Callable[[int], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new(1)
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "remove", lambda _: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run.train(1)
    assert (run.folder(1) / "checkpoints").exists()
    run.train(1)
    assert not (run.folder(1) / "checkpoints").exists()


def test_damaged_checkpoint_costs_an_epoch(
    whole: Bench, new: Callable[[int], Bench], caplog: pytest.LogCaptureFixture
) -> None:
    run = new(1)
    with pytest.raises(Killed):
        run.train(1, on_progress=at(EPOCHS, 1))
    assert checkpoints(run, 1) == ["epoch-0002.json", "epoch-0002.pt", "epoch-0003.json", "epoch-0003.pt"]
    newest = run.folder(1) / "checkpoints/epoch-0003.pt"
    newest.write_bytes(flip_a_bit(newest.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert resume(run, 1) == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"file://{newest} is damaged (its hash differs from its marker's): going back one checkpoint"
    ]
    assert_same(run, whole, 1)


@STAGES
def test_finished_stage_is_not_run_again(whole: Bench, stage: int) -> None:
    before = files(Path(whole.root.path))
    done = finished_stage(whole.bound, stage, whole.root)
    steps: list[Progress] = []
    whole.train(stage, on_progress=steps.append)
    assert not steps
    assert finished_stage(whole.bound, stage, whole.root) == done
    assert files(Path(whole.root.path)) == before


@pytest.mark.parametrize("finished", [True, False])
def test_stage_2_is_not_kept_when_stage_1_is_trained_anew(
    whole: Bench, new: Callable[[int], Bench], finished: bool
) -> None:
    """Its gates are of other weights, unless training repeats itself to the bit; on a GPU it may not."""
    run = new(2)
    if finished:
        run.train(2)
    else:
        with pytest.raises(Killed):
            run.train(2, on_progress=at(EPOCHS, 1))
    (run.folder(1) / "model.safetensors").unlink()
    run.train(1)
    assert not run.folder(2).exists()
    run.train(2)
    assert_same(run, whole, 2)


def test_stage_2_is_kept_until_stage_1_is_trained_anew(new: Callable[[int], Bench]) -> None:
    run = new(2)
    run.train(2)
    (run.folder(1) / "model.safetensors").unlink()
    with pytest.raises(Killed):
        run.train(1, on_progress=at(1, 1))
    assert (run.folder(2) / "receipt.json").exists()


def test_stage_2_needs_stage_1(micro: Callable[..., Bench]) -> None:
    with pytest.raises(InputError, match=rf"stage 1 of .* is not finished: run `btinet train {KEY} --stage 1` first"):
        micro().train(2)

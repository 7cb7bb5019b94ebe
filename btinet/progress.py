"""Progress and failures through storage: a job keeps small JSON files, whoever waits for it looks at them."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from btinet.config import Strict
from btinet.storage import Storage

log = logging.getLogger(__name__)

WRITE_SECONDS = 2.0
POLL_SECONDS = 1.0

OnBatch = Callable[[int, int], None]
"""Takes how many batches are done, and how many there are."""

Row = dict[str, float | int]
"""Of a run's history: one epoch."""


class Progress(NamedTuple):
    """Where a stage is, after a step."""

    stage: int
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    seconds_left: float
    """At most: early stopping may end the stage sooner."""
    last: Row | None
    """The last finished epoch's row of the history."""

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds_left), 60)
        words = [
            f"stage {self.stage}",
            f"epoch {self.epoch}/{self.epochs}",
            f"step {self.step}/{self.steps}",
            f"loss {self.loss:.3f}",
            f"at most {minutes}:{seconds:02d} left",
        ]
        if self.last is not None:
            words.append(f"last epoch: val IoU {self.last['val_iou']:.3f}")
            if "val_accuracy" in self.last:
                words[-1] += f", accuracy {self.last['val_accuracy']:.3f}"
        return "  ".join(words)


class ProgressFile:
    """Written at most once in WRITE_SECONDS, and when something comes to its end."""

    def __init__(self, file: Storage) -> None:
        self.file = file
        self.written = float("-inf")

    def write(self, content: dict[str, Any], is_end: bool) -> None:
        if is_end or time.monotonic() - self.written > WRITE_SECONDS:
            self.file.write_json({"time": time.time(), **content})
            self.written = time.monotonic()


class Failure(Strict):
    """The last error of a run."""

    time: float
    step: str
    """``stage1``, ``stage2``, ``evaluation``; ``job`` when the process that drives them was lost."""
    node: str
    """Name of the machine it happened on."""
    is_final: bool
    """Doing the step again cannot mend it: bad input, refused credentials, a loss that is not finite."""
    message: str

    def __str__(self) -> str:
        return f"{self.step} on {self.node}: {self.message}"


def write_failure(file: Storage, step: str, message: str, is_final: bool) -> None:
    """Leave ``message`` for whoever waits for this step; a final one stays, as what comes after follows from it."""
    if not is_final and (before := read_failure(file)) is not None and before.is_final:
        return
    failure = Failure(time=time.time(), step=step, node=socket.gethostname(), is_final=is_final, message=message)
    file.write_json(failure.model_dump())


def read_failure(file: Storage) -> Failure | None:
    """The failure in ``file``, if there is one."""
    content = read_progress(file)
    return None if content is None else Failure.model_validate(content)


@contextmanager
def watching(file: Storage, on_change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Pass on what is written to ``file`` while the block runs; what it held before is old news."""
    is_over = threading.Event()
    old = read_progress(file)

    def watch() -> None:
        seen = old
        while not is_over.wait(POLL_SECONDS):
            content = read_progress(file)
            if content is not None and content != seen:
                seen = content
                on_change(content)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


def read_progress(file: Storage) -> dict[str, Any] | None:
    """What ``file`` holds at present; None where there is none, or it cannot be read now."""
    try:
        content: dict[str, Any] = file.read_json()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # the job goes on without its progress being shown
        log.debug("%s: %s", file, error)
        return None
    return content

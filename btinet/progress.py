"""Progress through storage: a job keeps a small JSON file, whoever waits for it looks at the file."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from btinet.storage import Storage

log = logging.getLogger(__name__)

WRITE_SECONDS = 2.0
POLL_SECONDS = 1.0


class ProgressFile:
    """Written at most once in WRITE_SECONDS, and when something comes to its end."""

    def __init__(self, file: Storage) -> None:
        self.file = file
        self.written = float("-inf")

    def write(self, content: dict[str, Any], is_end: bool) -> None:
        if is_end or time.monotonic() - self.written > WRITE_SECONDS:
            self.file.write_json({"time": time.time(), **content})
            self.written = time.monotonic()


@contextmanager
def watching(file: Storage, on_change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Pass on what is written to ``file`` while the block runs; what it held before is old news."""
    is_over = threading.Event()
    old = _read(file)

    def watch() -> None:
        seen = old
        while not is_over.wait(POLL_SECONDS):
            content = _read(file)
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


def _read(file: Storage) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] | None = file.read_json() if file.exists() else None
    except (OSError, ValueError) as error:  # the job goes on without its progress being shown
        log.debug("%s: %s", file, error)
        return None
    return content

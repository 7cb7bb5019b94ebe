"""`btinet serve` as a process of its own, on a free port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PROGRAM = str(Path(sys.executable).with_name("btinet"))


class Server(NamedTuple):
    url: str
    process: subprocess.Popen[str]
    said: list[str]
    """What it printed before it listened."""


@contextmanager
def served(package: Path, *options: str, **environment: str) -> Iterator[Server]:
    """A server for the duration of the block, which Ctrl-C must end in good order."""
    command = [PROGRAM, "serve", "--run", str(package), "--port", "0", *options]
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        command, env=inherited | {"OMP_NUM_THREADS": "1"} | environment, stderr=subprocess.PIPE, text=True
    )
    with listening(process, r"http://\S+") as server:
        yield server


@contextmanager
def listening(process: subprocess.Popen[str], line_with_url: str) -> Iterator[Server]:
    """A server once it has printed where it listens; Ctrl-C must end it in good order at the end of the block."""
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.match(line_with_url, line):
                yield Server(found[0], process, said)
                break
        else:
            raise AssertionError(f"it did not start: {said}")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().endswith("stopped\n")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()

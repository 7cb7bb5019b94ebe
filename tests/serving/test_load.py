"""More clients than the server takes, for some seconds: what benchmarks/serve.py does for minutes at full size."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from benchmarks.serve import images, load
from tests.serving.server import served

GROWTH = 24
"""MiB that the server may grow by after warming up. Keeping the pixels of one image in three would take more."""


@pytest.mark.slow
def test_no_error_and_memory_is_flat(package: Path) -> None:
    """Every answer is a prediction or 429, whoever is refused gets through later, and nothing is kept."""
    files = images()
    with served(package, "--queue", "2") as server:
        process = psutil.Process(server.process.pid)
        warm = asyncio.run(load(server.url, process, files, clients=3, seconds=2))
        assert warm.refused == 0, "three have a place"
        crowded = asyncio.run(load(server.url, process, files, clients=8, seconds=4))
    assert warm.others == crowded.others == []
    assert len(warm.seconds) > 30 and len(crowded.seconds) > 60
    assert crowded.refused > 0
    assert max(crowded.waited) > 1, "those refused came again after Retry-After"
    assert max(crowded.memory) - warm.memory[-1] < GROWTH

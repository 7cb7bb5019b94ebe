"""A micro experiment for each test, on one thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.micro import Bench, bench, one_thread  # noqa: F401


@pytest.fixture
def micro(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bench]:
    """Makes a bench in this test's folder, with changes to the experiment."""
    return lambda **changes: bench(tmp_path, tmp_path_factory.getbasetemp(), **changes)

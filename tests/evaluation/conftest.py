"""A micro experiment for each test, on one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.training.micro import Bench, bench


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors are slower on several, and sums depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def micro(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bench]:
    """Makes a bench in this test's folder, with changes to the experiment."""
    return lambda **changes: bench(tmp_path, tmp_path_factory.getbasetemp(), **changes)

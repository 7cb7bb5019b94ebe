"""On one thread; a package of the micro run, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from btinet.catalog import find_run
from btinet.inference.package import export
from tests.training.micro import KEY, Bench, finished_bench, one_thread  # noqa: F401


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Trained and evaluated; not to be changed."""
    return finished_bench(tmp_path_factory.mktemp("inference"), tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def package(micro: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    folder = tmp_path_factory.mktemp("package") / "p"
    export(find_run(KEY, micro.root), folder, torch.device("cpu"))
    return folder

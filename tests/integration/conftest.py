"""An experiment that ends in seconds, and the flow as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]

MICRO = {
    "name": "micro",
    "preset": "tiny",
    "image_size": 32,
    "seeds": [42],
    "datasets": [{"name": "phantom", "max_samples": 48}],
    "model": {"decoder_channels": [16, 16, 8, 8], "clf_dim": 16},
    "train": {"batch_size": 8, "stage1": {"epochs": 2}, "stage2": {"epochs": 1}},
    "evaluation": {"mc_passes": 3},
}


@pytest.fixture
def write_experiment(tmp_path: Path) -> Callable[..., Path]:
    """Writes MICRO, with top-level fields replaced, as a YAML file."""

    def write(**fields: object) -> Path:
        file = tmp_path / "micro.yaml"
        file.write_text(yaml.safe_dump(MICRO | {"storage": {"url": str(tmp_path / "results")}} | fields))
        return file

    return write


def run_flow(experiment: Path, *options: str, timeout: float = 300, **environment: str) -> str:
    """``python -m flows.full_experiment``; returns what it printed, and fails where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.full_experiment", str(experiment), *options],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr

"""The first steps of training, to the digit: whoever changes the numbers should know that they did."""

from __future__ import annotations

from pathlib import Path

import pytest

from btinet.binding import bind_one
from btinet.config import Experiment
from btinet.progress import Progress
from btinet.storage import Storage
from btinet.training.stage import train_stage
from tests.training.micro import CPU

LOSSES = [0.927978, 0.908521, 1.029437, 0.914094, 0.87771]

CHANGED = (
    "the numbers of training have changed. If that is not intended, find out why. If it is, raise "
    "btinet.config.NUMERICS, so that runs made before are not mistaken for new ones, and put these losses here: "
)


class EnoughError(Exception):
    """Ends the training."""


def test_first_losses_of_the_tiny_preset(tmp_path: Path) -> None:
    """The preset as it is but for dropout, whose random numbers differ between kinds of CPU."""
    experiment = Experiment(
        name="golden",
        datasets=({"name": "phantom", "max_samples": 40},),
        preset="tiny",
        seeds=(42,),
        model={"dropout": 0.0},
        storage={"url": str(tmp_path)},
    )
    root = Storage(experiment.storage.url)
    bound = bind_one(experiment, "phantom/btinet/full/42", root)
    losses: list[float] = []

    def on_progress(progress: Progress) -> None:
        losses.append(progress.loss)
        if len(losses) == len(LOSSES):
            raise EnoughError

    with pytest.raises(EnoughError):
        train_stage(bound, 1, root, CPU, on_progress)
    assert losses == pytest.approx(LOSSES, rel=1e-3), CHANGED + str([round(loss, 6) for loss in losses])

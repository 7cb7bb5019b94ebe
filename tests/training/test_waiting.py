"""A training step queues its work and never waits for the device: seen on torch's meta device, which has no numbers.

Whatever needs one there raises: ``item``, a choice by value, an index of booleans. What goes on without, and would wait
on a GPU, is a copy between host and device that says nothing of ``non_blocking``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from btinet.datasets.augment import augment
from btinet.datasets.splits import load_split
from btinet.ranks import Ranks
from btinet.training.data import SplitData
from btinet.training.loop import take_step
from tests.training.micro import SEED, Bench

META = torch.device("meta")
BALANCES_THAT_WAIT = ("gradnorm", "pcgrad", "uncertainty")


class NoBlockingCopies(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
        if len(devices) > 1 and not kwargs.get("non_blocking"):
            raise AssertionError(f"{func} waits for the device")
        return result


def step_on_meta(bench: Bench, stage: int) -> dict[str, Tensor]:
    """A batch, a step and a validation batch; the step's losses."""
    settings = bench.bound.run.settings.train
    prepared = bench.prepared()
    data = SplitData(prepared, load_split(bench.root, prepared, "paper", SEED).rows("train"), META)
    task = bench.task(stage).to(META)
    task.train()
    optimizer = torch.optim.Adam([parameter for parameter in task.parameters() if parameter.requires_grad])
    balance = task.balance()
    if own := balance.parameters():
        optimizer.add_param_group({"params": own})
    batches = data.shuffled(settings.batch_size, [SEED, stage, 1], Ranks())
    with NoBlockingCopies():
        batch = next(batches)
        images, masks = augment(batch.images, batch.masks, batch.rows, SEED, 1, settings)
        batch = batch._replace(images=images, masks=masks)
        losses = take_step(task, batch, optimizer, balance, settings.clip_norm, Ranks())
        task.eval().validate(next(data.ordered(settings.val_batch_size, Ranks())))
    return losses


@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_waits_for_nothing(micro: Callable[..., Bench], stage: int) -> None:
    losses = step_on_meta(micro(model={"mscf": True}), stage)
    assert "loss" in losses
    assert {loss.device for loss in losses.values()} == {META}


@pytest.mark.parametrize("balance", BALANCES_THAT_WAIT)
def test_waiting_is_seen(micro: Callable[..., Bench], balance: str) -> None:
    """These look at the step's losses or gradients."""
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        step_on_meta(micro(loss={"balance": balance}), 1)


def test_a_blocking_copy_is_seen() -> None:
    with NoBlockingCopies():
        torch.ones(1).to(META, non_blocking=True)
        with pytest.raises(AssertionError, match="waits"):
            torch.ones(1).to(META)

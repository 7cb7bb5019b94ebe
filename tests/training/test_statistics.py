"""The head's BatchNorm has the statistics of its inputs in evaluation, and what that is for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from btinet.training.stage import load_model
from btinet.training.statistics import refresh_statistics
from tests.training.micro import Bench


def inputs_in_evaluation(model: nn.Module, images: Tensor) -> np.ndarray:
    """What the head's BatchNorm is given, by the layers before it: [B, 256]."""
    head = model.get_submodule("clf_head")
    descriptors: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: descriptors.append(given[0]))
    with torch.no_grad():
        model.eval()(images)
        hook.remove()
        return head[1](head[0](descriptors[0])).double().numpy()


def test_a_trained_run_has_them(micro: Callable[..., Bench]) -> None:
    """Those of its own best weights over all its training images, of which there are less than 128."""
    bench = micro(train={"stage1": {"epochs": 2}})
    bench.train(1)
    train, model = bench.data("train"), load_model(bench.bound, 1, bench.root, 3)
    norm = model.get_submodule("clf_head")[2]
    seen = inputs_in_evaluation(model, train.batch(np.arange(len(train))).images)
    np.testing.assert_allclose(norm.running_mean.numpy(), seen.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), seen.var(0, ddof=1), rtol=1e-4, atol=1e-8)


def test_nothing_else_changes(micro: Callable[..., Bench]) -> None:
    bench = micro()
    model = bench.task(1).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refresh_statistics(model, bench.data("train"), batch_size=5)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"clf_head.2.running_mean", "clf_head.2.running_var"}
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_unit_that_training_has_not_seen_fire_does_not_decide_the_class(micro: Callable[..., Bench]) -> None:
    """What happens where the averages of training are of other inputs than those of evaluation."""
    bench = micro()
    task = bench.task(1)
    norm = task.model.get_submodule("clf_head")[2]
    norm.running_mean.zero_()
    norm.running_var.fill_(1e-12)
    batch = bench.data("val").batch(np.arange(6))

    def loss() -> float:
        return float(task.eval().validate(batch)["clf"]) / 6

    before = loss()
    refresh_statistics(task.model, bench.data("train"), batch_size=28)
    assert loss() < 1 < before


def test_many_images_are_sampled_evenly(micro: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("btinet.training.statistics.SAMPLES", 4)
    bench = micro()
    model, train = bench.task(1).model, bench.data("train")
    refresh_statistics(model, train, batch_size=3)
    seen = inputs_in_evaluation(model, train.batch(np.array([0, 9, 18, 27])).images)
    norm = model.get_submodule("clf_head")[2]
    np.testing.assert_allclose(norm.running_mean.numpy(), seen.mean(0), rtol=1e-4, atol=1e-6)

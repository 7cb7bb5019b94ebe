"""Weights and gradients of every balance, against the formulas worked out by hand or by another route."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from btinet.config import LossSettings
from btinet.ranks import Ranks
from btinet.training.balancing import (
    Adaptive,
    Balance,
    DynamicWeightAverage,
    GradNorm,
    ProjectedGradients,
    Uncertainty,
    make_balance,
    project,
)
from tests.training.micro import Bench
from tests.training.test_loop import run_fit

TASKS = ("seg", "clf")
OWN = {"seg": 0.82, "clf": 1 - 0.82}
NAMES = get_args(LossSettings.model_fields["balance"].annotation)


class Net(nn.Module):
    """Two tasks on one shared layer, each with a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(4, 6, bias=False)
        self.heads = nn.ModuleDict({task: nn.Linear(6, 1, bias=False) for task in TASKS})

    def last_shared(self) -> nn.Parameter:
        return self.shared.weight

    def losses(self) -> dict[str, torch.Tensor]:
        x = torch.linspace(-1, 1, 20).view(5, 4)
        hidden = self.shared(x).tanh()
        return {
            task: (self.heads[task](hidden) - target).square().mean()
            for task, target in zip(TASKS, (3, -1), strict=True)
        }


def gradients(net: Net, of: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(of, list(net.parameters()), retain_graph=True, materialize_grads=True))


def backward(balance: Balance, net: Net) -> None:
    net.zero_grad()
    balance.backward(net.losses(), list(net.parameters()), Ranks.alone())


class TestAdaptive:
    """r = L(t) / L(t-1) in [0.5, 2]; weight * r, renormalised, that of segmentation in [0.70, 0.92] (notes B10)."""

    @pytest.mark.parametrize(
        "losses, expected",
        [
            ([], 0.82),
            ([(1.0, 1.0)], 0.82),  # nothing to compare with yet
            ([(0.7, 2.0), (0.7, 2.0)], 0.82),
            ([(1.0, 1.0), (0.8, 1.0)], 0.656 / 0.836),  # it improves faster, so it loses weight
            ([(1.0, 1.0), (1.0, 0.8)], 0.82 / 0.964),
            ([(1.0, 1.0), (0.8, 1.0), (0.8, 0.9)], (0.656 / 0.836) / (0.656 / 0.836 + 0.9 * 0.18 / 0.836)),
            ([(1.0, 1.0), (9.0, 1.0)], 1.64 / 1.82),  # 9 counts as 2
            ([(1.0, 1.0), (1.0, 0.01)], 0.82 / 0.91),  # 0.01 counts as 0.5
            ([(1.0, 1.0), (0.01, 1.0)], 0.70),  # 0.41 / 0.59 = 0.695
            ([(1.0, 1.0), (2.0, 0.5)], 0.92),  # 1.64 / 1.73 = 0.948
            ([(1.0, 1.0), (2.0, 0.5), (2.0, 0.5)], 0.92),
        ],
    )
    def test_weights(self, losses: list[tuple[float, float]], expected: float) -> None:
        balance = Adaptive(OWN)
        for seg, clf in losses:
            balance.end_epoch({"seg": 7.0, "clf": 7.0}, {"seg": seg, "clf": clf})
        assert balance.weights["seg"] == pytest.approx(expected, rel=1e-12)
        assert sum(balance.weights.values()) == pytest.approx(1)

    def test_history_records_the_weights_used(self, micro: Callable[..., Bench]) -> None:
        bench = micro(train={"stage1": {"epochs": 3}})
        settings = bench.bound.run.settings.train
        history = run_fit(bench.task(1), bench.data("train"), bench.data("val"), settings, bench.folder(1)).history
        balance = Adaptive(OWN)
        for row in history:
            assert (row["seg_weight"], row["clf_weight"]) == tuple(balance.weights.values())
            balance.end_epoch({}, {task: float(row[f"val_{task}"]) for task in TASKS})
        assert history[2]["seg_weight"] != 0.82


def test_dynamic_weight_average() -> None:
    balance = DynamicWeightAverage(TASKS)
    balance.end_epoch({"seg": 1.0, "clf": 2.0}, {})
    assert balance.weights == {"seg": 1.0, "clf": 1.0}
    balance.end_epoch({"seg": 0.5, "clf": 2.0}, {})
    a, b = np.exp(0.5 / 2), np.exp(1.0 / 2)
    assert list(balance.weights.values()) == pytest.approx([2 * a / (a + b), 2 * b / (a + b)])


def test_uncertainty() -> None:
    """L = sum exp(-s) L + s/2, by finite differences; the weight is exp(-s)."""
    net, balance = Net(), Uncertainty(TASKS, torch.device("cpu"))
    with torch.no_grad():
        balance.log_variance.copy_(torch.tensor([0.3, -0.7]))
    losses = {task: loss.item() for task, loss in net.losses().items()}
    expected = np.exp(-0.3) * losses["seg"] + 0.15 + np.exp(0.7) * losses["clf"] - 0.35
    assert balance.total(net.losses()).item() == pytest.approx(expected, rel=1e-6)
    backward(balance, net)
    assert balance.log_variance.grad is not None
    by_hand = [0.5 - np.exp(-0.3) * losses["seg"], 0.5 - np.exp(0.7) * losses["clf"]]
    assert balance.log_variance.grad.tolist() == pytest.approx(by_hand, rel=1e-5)
    assert list(balance.weights.values()) == pytest.approx([np.exp(-0.3), np.exp(0.7)])
    separate = [gradients(net, loss) for loss in net.losses().values()]
    for parameter, seg, clf in zip(net.parameters(), *separate, strict=True):
        torch.testing.assert_close(parameter.grad, np.exp(-0.3) * seg + np.exp(0.7) * clf)


def test_uncertainty_learns_from_all_ranks() -> None:
    class WithAnother(Ranks):
        """A rank beside which another one's gradients are 1."""

        size, rank = 2, 0

        def __init__(self) -> None:
            pass

        def sum(self, values: torch.Tensor) -> torch.Tensor:
            return values + 1

    net, balance = Net(), Uncertainty(TASKS, torch.device("cpu"))
    balance.backward(net.losses(), list(net.parameters()), WithAnother())
    assert balance.log_variance.grad is not None
    own = [0.5 - loss.item() for loss in net.losses().values()]
    assert balance.log_variance.grad.tolist() == pytest.approx([(gradient + 1) / 2 for gradient in own])


class TestGradNorm:
    def test_weights_sum_to_the_number_of_tasks_and_even_out_the_gradients(self) -> None:
        net = Net()
        balance = GradNorm(TASKS, net.last_shared())

        def sizes() -> list[float]:
            return [
                balance.weights[task] * torch.autograd.grad(loss, net.last_shared(), retain_graph=True)[0].norm().item()
                for task, loss in net.losses().items()
            ]

        before = sizes()
        for _ in range(200):  # the losses stay, so the target is the mean size
            backward(balance, net)
            assert sum(balance.weights.values()) == pytest.approx(2)
            assert min(balance.weights.values()) > 0
        after = sizes()
        assert before[0] / before[1] > 2
        assert after[0] / after[1] == pytest.approx(1, abs=0.1), (before, after, balance.weights)

    @pytest.mark.parametrize("sizes", [(3.0, 1.0), (0.8, 3.2)])
    def test_one_step_by_hand(self, sizes: tuple[float, float]) -> None:
        balance = GradNorm(TASKS, Net().last_shared())
        # mean size 2; ratios 0.5 and 1.5, mean 1: targets 2 * 0.5**1.5 = 0.71 and 2 * 1.5**1.5 = 3.67, not 1 and 3
        balance._follow(np.array(sizes), np.array([0.5, 1.5]))
        steps = 0.025 * np.array(sizes) / np.mean(sizes)
        moved = np.array([1 - steps[0], 1 + steps[1]])  # the first task's is too large, the second's too small
        assert list(balance.weights.values()) == pytest.approx(list(moved * 2 / moved.sum()))

    def test_losses_are_compared_with_the_first_steps(self) -> None:
        net = Net()
        balance = GradNorm(TASKS, net.last_shared())
        first = [loss.item() for loss in net.losses().values()]
        for _ in range(3):
            backward(balance, net)
            with torch.no_grad():
                net.shared.weight.add_(1)
        assert balance.initial == pytest.approx(first)

    def test_gradients_are_those_of_the_weighted_sum(self) -> None:
        net = Net()
        balance = GradNorm(TASKS, net.last_shared())
        balance.weights = {"seg": 1.7, "clf": 0.3}
        expected = gradients(net, 1.7 * net.losses()["seg"] + 0.3 * net.losses()["clf"])
        backward(balance, net)
        for parameter, gradient in zip(net.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


class TestProjectedGradients:
    def test_projected_gradients_do_not_conflict(self) -> None:
        generator = torch.Generator().manual_seed(0)
        conflicts = 0
        for _ in range(50):
            a, b = torch.randn(2, 7, generator=generator)
            p, q = project([a, b])
            if a @ b < 0:
                conflicts += 1
                assert p @ b == pytest.approx(0, abs=1e-5) and q @ a == pytest.approx(0, abs=1e-5)
                assert p @ q >= -1e-5
                torch.testing.assert_close(p, a - (a @ b) / (b @ b) * b)
            else:
                assert torch.equal(p, a) and torch.equal(q, b)
        assert conflicts > 10

    @pytest.mark.parametrize("sign", [1, -1])
    def test_step(self, sign: int) -> None:
        """Shared parameters get the projected sum, a task's own what its loss alone gives."""
        net = Net()
        with torch.no_grad():
            net.heads["clf"].weight.copy_(sign * net.heads["seg"].weight)
        seg, clf = (gradients(net, loss) for loss in net.losses().values())
        shared = [each[0].flatten() for each in (seg, clf)]
        assert (shared[0] @ shared[1] < 0) == (sign == 1)  # targets of opposite sign
        backward(ProjectedGradients(TASKS), net)
        assert net.shared.weight.grad is not None
        torch.testing.assert_close(net.shared.weight.grad.flatten(), sum(project(shared)))
        torch.testing.assert_close(net.heads["seg"].weight.grad, seg[1])
        torch.testing.assert_close(net.heads["clf"].weight.grad, clf[2])


@pytest.mark.parametrize("name", NAMES)
def test_a_methods_own_penalty_is_added_once(name: str) -> None:
    """A task's loss that is doubled through the penalty: the gradient of the penalty is there, whole."""
    plain, penalised = Net(), Net()
    for net, is_penalised in ((plain, False), (penalised, True)):
        balance = make_balance(LossSettings(balance=name), TASKS, net)
        penalty = {"penalty": net.shared.weight.square().sum()} if is_penalised else {}
        balance.backward(net.losses() | penalty, list(net.parameters()), Ranks.alone())
    assert plain.shared.weight.grad is not None and penalised.shared.weight.grad is not None
    difference = penalised.shared.weight.grad - plain.shared.weight.grad
    if name != "pcgrad":  # which projects the tasks' halves of it as well
        torch.testing.assert_close(difference, 2 * plain.shared.weight.detach())
    assert difference.abs().sum() > 0


def test_fixed() -> None:
    balance = make_balance(LossSettings(balance="fixed", seg_weight=0.5), TASKS, Net())
    balance.end_epoch({"seg": 1.0, "clf": 1.0}, {"seg": 1.0, "clf": 1.0})
    balance.end_epoch({"seg": 2.0, "clf": 0.5}, {"seg": 2.0, "clf": 0.5})
    assert balance.weights == {"seg": 0.5, "clf": 0.5}


@pytest.mark.parametrize("name", NAMES)
def test_there_is_nothing_to_balance_for_one_task(name: str) -> None:
    balance = make_balance(LossSettings(balance=name), ("seg",), Net())
    balance.end_epoch({"seg": 1.0}, {"seg": 1.0})
    assert (type(balance), balance.weights) == (Balance, {"seg": 1.0})


@pytest.mark.parametrize("name", NAMES)
def test_restored_it_goes_on(name: str) -> None:
    def epochs(balance: Balance, net: Net, count: int) -> None:
        optimizer = torch.optim.SGD([*net.parameters(), *balance.parameters()], lr=0.1)
        for _ in range(count):
            optimizer.zero_grad()
            losses = net.losses()
            balance.backward(losses, list(net.parameters()), Ranks.alone())
            optimizer.step()
            values = {task: loss.item() for task, loss in losses.items()}
            balance.end_epoch(values, values)

    settings = LossSettings(balance=name)
    whole, first = Net(), Net()
    one = make_balance(settings, TASKS, whole)
    epochs(one, whole, 6)
    epochs(interrupted := make_balance(settings, TASKS, first), first, 3)
    second = Net()
    second.load_state_dict(first.state_dict())
    resumed = make_balance(settings, TASKS, second)
    resumed.restore(interrupted.state())
    epochs(resumed, second, 3)
    assert resumed.weights == one.weights
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_a_joint_method_trains_with_it(micro: Callable[..., Bench], name: str) -> None:
    bench = micro(loss={"balance": name}, train={"stage1": {"epochs": 2}})
    settings = bench.bound.run.settings.train
    history = run_fit(bench.task(1), bench.data("train"), bench.data("val"), settings, bench.folder(1)).history
    assert len(history) == 2
    learns = name in ("uncertainty", "gradnorm")  # from a step; adaptive and dwa compare two epochs
    assert (history[1]["seg_weight"] != history[0]["seg_weight"]) == learns
    assert all(np.isfinite(float(row["train_loss"])) for row in history)

"""How the losses of several tasks become one step: BTI-Net's own weighting, and five that joint methods are given.

A balance keeps a weight per task, turns a step's losses into gradients, and may learn from a step or an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from btinet.config import LossSettings
from btinet.models.method import Method
from btinet.ranks import Ranks

Losses = Mapping[str, Tensor]
"""A scalar per task; ``penalty``, where the method has one, is added as it is."""


class Balance:
    """Fixed weights, and the base of the others.

    Attributes:
        weights: of each task's loss, as the next step uses them.
        synchronises: the balance averages gradients over the ranks itself, so that the model must not.
    """

    synchronises = False

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = dict(weights)

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer trains beside the model."""
        return []

    def total(self, losses: Losses) -> Tensor:
        """What is minimised: the weighted sum."""
        weighted = torch.stack([weight * losses[task] for task, weight in self.weights.items()])
        return weighted.sum() + losses.get("penalty", 0)

    def backward(self, losses: Losses, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        """Leave the step's gradients in the model's ``parameters`` and in the balance's own."""
        self.total(losses).backward()

    def end_epoch(self, train: Mapping[str, float], val: Mapping[str, float]) -> None:
        """Take in an epoch's mean training and validation loss of each task."""

    def state(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def restore(self, state: dict[str, Any]) -> None:
        self.weights = state["weights"]


class Adaptive(Balance):
    """Weights moved by relative validation improvement (App. B; notes B10).

    r_k = L_k(t-1) / L_k(t-2) on validation, clipped to [0.5, 2]; lambda_k <- lambda_k * r_k, renormalised to sum 1,
    with the segmentation weight held in [0.70, 0.92]. The task that improves more slowly gains weight.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__(weights)
        self.previous: dict[str, float] | None = None

    def end_epoch(self, train: Mapping[str, float], val: Mapping[str, float]) -> None:
        if self.previous is not None:
            moved = {
                task: weight * float(np.clip(val[task] / self.previous[task], 0.5, 2))
                for task, weight in self.weights.items()
            }
            seg = float(np.clip(moved["seg"] / (moved["seg"] + moved["clf"]), 0.70, 0.92))
            self.weights = {"seg": seg, "clf": 1 - seg}
        self.previous = dict(val)

    def state(self) -> dict[str, Any]:
        return super().state() | {"previous": self.previous}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.previous = state["previous"]


class DynamicWeightAverage(Balance):
    """DWA (Liu, Johns and Davison, CVPR 2019): the task whose training loss falls more slowly gains weight.

    lambda_k = K exp(w_k / T) / sum_i exp(w_i / T), w_k = L_k(t-1) / L_k(t-2), T = 2; 1 in the first two epochs.
    """

    TEMPERATURE = 2.0

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(dict.fromkeys(tasks, 1.0))
        self.previous: dict[str, float] | None = None

    def end_epoch(self, train: Mapping[str, float], val: Mapping[str, float]) -> None:
        if self.previous is not None:
            rate = {task: math.exp(train[task] / self.previous[task] / self.TEMPERATURE) for task in self.weights}
            self.weights = {task: len(rate) * value / sum(rate.values()) for task, value in rate.items()}
        self.previous = dict(train)

    def state(self) -> dict[str, Any]:
        return super().state() | {"previous": self.previous}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.previous = state["previous"]


class Uncertainty(Balance):
    """Homoscedastic uncertainty (Kendall, Gal and Cipolla, CVPR 2018).

    L = sum_k exp(-s_k) L_k + s_k / 2 with a learned s_k = log sigma_k^2 for each task, 0 at the start.
    """

    def __init__(self, tasks: Sequence[str], device: torch.device) -> None:
        super().__init__(dict.fromkeys(tasks, 1.0))
        self.log_variance = nn.Parameter(torch.zeros(len(tasks), device=device))

    def parameters(self) -> list[nn.Parameter]:
        return [self.log_variance]

    def total(self, losses: Losses) -> Tensor:
        stacked = torch.stack([losses[task] for task in self.weights])
        return ((-self.log_variance).exp() * stacked + self.log_variance / 2).sum() + losses.get("penalty", 0)

    def backward(self, losses: Losses, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        precision = (-self.log_variance.detach()).exp()
        self.weights = dict(zip(self.weights, precision.tolist(), strict=True))
        super().backward(losses, parameters, ranks)
        assert self.log_variance.grad is not None
        self.log_variance.grad = ranks.sum(self.log_variance.grad) / ranks.size  # it is no part of the model

    def state(self) -> dict[str, Any]:
        return super().state() | {"log_variance": self.log_variance.detach().cpu()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        with torch.no_grad():
            self.log_variance.copy_(state["log_variance"])


class GradNorm(Balance):
    """GradNorm (Chen et al., ICML 2018): gradients of the tasks of one size, larger for a task that trains slowly.

    G_k = ||grad_W w_k L_k|| over the encoder's last shared weights W, r_k = (L_k / L_k(0)) / mean_i(L_i / L_i(0)); the
    weights follow the gradient of sum_k |G_k - mean(G) r_k^alpha|, its target held fixed, and sum to the number of
    tasks.
    """

    ALPHA = 1.5
    LEARNING_RATE = 0.025
    SMALLEST = 0.01
    """A weight that reached zero would stay there."""

    def __init__(self, tasks: Sequence[str], shared: nn.Parameter) -> None:
        super().__init__(dict.fromkeys(tasks, 1.0))
        self.shared = shared
        self.initial: list[float] | None = None

    def backward(self, losses: Losses, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        values = [float(ranks.sum(losses[task].detach())) / ranks.size for task in self.weights]
        norms = []
        for task in self.weights:
            (gradient,) = torch.autograd.grad(losses[task], self.shared, retain_graph=True)
            norms.append(float((ranks.sum(gradient) / ranks.size).norm()))
        super().backward(losses, parameters, ranks)
        self.initial = self.initial or values
        self._follow(np.array(norms), np.array(values) / np.array(self.initial))

    def _follow(self, norms: np.ndarray, ratios: np.ndarray) -> None:
        """A step of the weights.

        Args:
            norms: of the unweighted losses' gradients.
            ratios: L_k / L_k(0).
        """
        weights = np.array(list(self.weights.values()))
        sizes = weights * norms
        target = sizes.mean() * (ratios / ratios.mean()) ** self.ALPHA
        weights = weights - self.LEARNING_RATE * np.sign(sizes - target) * norms / norms.mean()
        weights = np.maximum(weights, self.SMALLEST)
        weights *= len(weights) / weights.sum()
        self.weights = dict(zip(self.weights, weights.tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        return super().state() | {"initial": self.initial}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.initial = state["initial"]


class ProjectedGradients(Balance):
    """PCGrad (Yu et al., NeurIPS 2020): where two tasks' gradients conflict, each gives up what opposes the other.

    Over the parameters that both tasks use: if g_i . g_j < 0, g_i <- g_i - (g_i . g_j / ||g_j||^2) g_j. With two tasks
    the order of the projections, random in the paper, makes no difference.
    """

    synchronises = True

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(dict.fromkeys(tasks, 1.0))

    def backward(self, losses: Losses, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        share = losses.get("penalty", 0) / len(self.weights)
        gradients = [
            [
                None if gradient is None else ranks.sum(gradient) / ranks.size
                for gradient in torch.autograd.grad(
                    losses[task] + share, parameters, retain_graph=True, allow_unused=True
                )
            ]
            for task in self.weights
        ]
        used = list(zip(*gradients, strict=True))
        is_shared = [all(gradient is not None for gradient in each) for each in used]
        flat = [
            torch.cat([gradient.flatten() for gradient, shared in zip(own, is_shared, strict=True) if shared])
            for own in gradients
        ]
        combined = iter(
            _unflatten(torch.stack(project(flat)).sum(0), [p for p, s in zip(parameters, is_shared, strict=True) if s])
        )
        for parameter, shared, each in zip(parameters, is_shared, used, strict=True):
            own = [gradient for gradient in each if gradient is not None]
            parameter.grad = next(combined) if shared else (own[0] if own else None)


def project(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Each gradient [P] without what opposes another one's."""
    projected = []
    for i, gradient in enumerate(gradients):
        for j, other in enumerate(gradients):
            product = gradient @ other
            if i != j and product < 0:
                gradient = gradient - product / other.square().sum() * other
        projected.append(gradient)
    return projected


def _unflatten(flat: Tensor, like: Sequence[nn.Parameter]) -> list[Tensor]:
    pieces = flat.split([parameter.numel() for parameter in like])
    return [piece.view_as(parameter) for piece, parameter in zip(pieces, like, strict=True)]


def make_balance(settings: LossSettings, tasks: Sequence[str], model: Method) -> Balance:
    """The balance that ``loss.balance`` names; there is nothing to balance for one task only.

    Args:
        tasks: names of the losses to balance.
        model: on the device to train on.
    """
    if len(tasks) == 1:
        return Balance({tasks[0]: 1.0})
    own = {"seg": settings.seg_weight, "clf": 1 - settings.seg_weight}
    match settings.balance:
        case "fixed":
            return Balance(own)
        case "adaptive":
            return Adaptive(own)
        case "dwa":
            return DynamicWeightAverage(tasks)
        case "uncertainty":
            return Uncertainty(tasks, model.last_shared().device)
        case "gradnorm":
            return GradNorm(tasks, model.last_shared())
        case "pcgrad":
            return ProjectedGradients(tasks)

"""The classification head's BatchNorm statistics, taken as evaluation sees them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from btinet.training.data import SplitData

SAMPLES = 128
"""Training images, at most."""


@torch.no_grad()
def refresh_statistics(model: nn.Module, train: SplitData, batch_size: int) -> None:
    """Give each BatchNorm of vectors (not of maps) the mean and variance of its inputs in evaluation mode.

    The averages that training leaves are of other inputs: there the layers before normalise by their batch's own
    statistics, so that units of the head that fire in evaluation may not have fired for long. Their variance is next to
    0, and dividing by its root lets a single unit decide the class (measured: docs/reproduction.md). Weights stay as
    they are, and so does training, which does not use these numbers. It is the "precise" BatchNorm of Wu and Johnson,
    2021 (arXiv:2105.07576), for these layers alone.

    Args:
        model: left in evaluation mode; as it was where it has no such layer.
        train: of which SAMPLES, evenly over the split, are looked at without augmentation; every rank does the same.
        batch_size: of the passes.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    if not norms:
        return
    model.eval()
    inputs: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}
    hooks = [norm.register_forward_pre_hook(lambda norm, given: inputs[norm].append(given[0])) for norm in norms]
    positions = np.linspace(0, len(train) - 1, min(SAMPLES, len(train))).round().astype(np.int64)
    for start in range(0, len(positions), batch_size):
        model(train.batch(positions[start : start + batch_size]).images)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None
        vectors = torch.cat(inputs[norm]).float()
        norm.running_mean.copy_(vectors.mean(0))
        norm.running_var.copy_(vectors.var(0))

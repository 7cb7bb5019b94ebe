"""What a method costs: parameters and multiply-adds, counted on torch's meta device without memory for the weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from btinet.config import Settings
from btinet.models.registry import build


class Cost(NamedTuple):
    parameters: int
    """All of them, the frozen ones too."""
    own_parameters: int
    """Those outside the shared encoder; all of them where the method has an encoder of its own."""
    multiply_adds: int
    """Of predicting one image of ``settings.image_size``."""


def cost(method: str, settings: Settings, classes: int) -> Cost:
    """Count a method's operations and numbers.

    Args:
        method: a name in METHODS.
        settings: architecture and image size.
        classes: number of classes.
    """
    with torch.device("meta"):
        model = build(method, settings.model, classes).eval()
    parameters = _parameters(model)
    shared = _parameters(model.encoder) if model.shares_encoder else 0
    return Cost(parameters, parameters - shared, multiply_adds(model, settings.image_size))


@torch.no_grad()
def multiply_adds(model: nn.Module, size: int) -> int:
    """Of one RGB image, size x size, in a model on the meta device.

    Convolutions, linear layers and attention's matrix products; normalisation, activations, biases and resizing are
    left out, as is usual.
    """
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    return int(counter.get_total_flops()) // 2  # it counts a multiply-add as two operations


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

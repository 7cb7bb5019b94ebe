"""Parameters and multiply-adds, against counts made in another way."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btinet.config import PRESETS, Settings
from btinet.models.cost import Cost, cost, multiply_adds
from btinet.models.decoder import Upsample2x
from btinet.models.registry import build

PAPER, TINY = Settings(), Settings.model_validate(PRESETS["tiny"])
CLASSES = 3


def by_layer(model: nn.Module, size: int) -> int:
    """Multiply-adds of a network whose only products are those of its layers, from their weights and outputs."""
    counts = []

    def count(layer: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        if isinstance(layer, nn.Linear):
            places = output.numel() // layer.out_features
        else:  # a transposed convolution's weights are applied once at each input pixel, a convolution's at each output
            places = prod((inputs[0] if isinstance(layer, (nn.ConvTranspose2d, Upsample2x)) else output).shape[2:])
        counts.append(places * (layer.conv if isinstance(layer, Upsample2x) else layer).weight.numel())

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, Upsample2x, nn.Linear)):
            layer.register_forward_hook(count)  # type: ignore[arg-type]
    with torch.no_grad():
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    return sum(counts)


def test_a_convolution_by_hand() -> None:
    with torch.device("meta"):
        convolution = nn.Conv2d(3, 8, kernel_size=3, stride=2, padding=1)
        depthwise = nn.Conv2d(3, 3, kernel_size=5, padding=2, groups=3)
    assert multiply_adds(convolution, 32) == 16 * 16 * 8 * 3 * 3 * 3
    assert multiply_adds(depthwise, 32) == 32 * 32 * 3 * 5 * 5


def test_attention_by_hand() -> None:
    """Four pixels attend to four pixels, in products that are in no layer."""

    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).mT
            return F.scaled_dot_product_attention(tokens, tokens, tokens)

    assert multiply_adds(Attention(), 2) == 2 * (4 * 4 * 3)


@pytest.mark.parametrize("method", ["btinet", "unet"])
def test_against_a_count_by_layer(method: str) -> None:
    with torch.device("meta"):
        model = build(method, PAPER.model, CLASSES)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    encoder = sum(parameter.numel() for name, parameter in model.named_parameters() if name.startswith("encoder."))
    assert encoder == 17_548_616  # EfficientNet-B4 without its classifier
    assert cost(method, PAPER, CLASSES) == Cost(parameters, parameters - encoder, by_layer(model, 224))


def test_an_encoder_of_its_own_is_not_shared() -> None:
    counted = cost("swin-unet", TINY, CLASSES)
    assert counted.own_parameters == counted.parameters


def test_both_tasks_passes_through_the_encoder_are_counted() -> None:
    """DynaShare, whose gates decide by values that the meta device has not, counts as if it executed every block."""
    with torch.device("meta"):
        model = build("dynashare", TINY.model, CLASSES)
    assert cost("dynashare", TINY, CLASSES).multiply_adds == by_layer(model, TINY.image_size)

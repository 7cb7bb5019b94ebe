"""Layers that several baselines are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TASKS = ("seg", "clf")
Tasks = dict[str, Tensor]
"""A feature map of each task, [B, C, H, W]."""


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution (same padding, no bias), BatchNorm, ReLU: [B, inputs, H, W] -> [B, outputs, H/stride, W/stride]."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """The U-Net's block: two 3x3 convolutions, each with BatchNorm and ReLU."""
    return nn.Sequential(conv_bn_relu(inputs, outputs), conv_bn_relu(outputs, outputs))


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, to the height and width of ``like``."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def upsample(x: Tensor, factor: int) -> Tensor:
    """Bilinear: [B, C, H, W] -> [B, C, factor * H, factor * W]."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def residual(block: Any, inputs: int, outputs: int) -> nn.Module:
    """timm's ResNet ``BasicBlock`` or ``Bottleneck``, with a 1x1-BN shortcut where the width changes."""
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
    module: nn.Module = block(inputs, outputs // block.expansion, downsample=None if inputs == outputs else shortcut)
    return module


class PooledHead(nn.Sequential):
    """Global average pooling, dropout, linear: [B, C, H, W] -> class logits [B, K]."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, classes))


class InitialPredictions(nn.Module):
    """PAD-Net's and MTI-Net's first guess of every task: two residual blocks refine the features, a 1x1 predicts.

    Classification is treated as a dense task until its map of K logits is averaged.

    Args:
        block: timm's ``BasicBlock`` or ``Bottleneck``.
    """

    def __init__(self, block: Any, inputs: int, channels: int, classes: int) -> None:
        super().__init__()
        self.refine = nn.ModuleDict(
            {
                task: nn.Sequential(residual(block, inputs, channels), residual(block, channels, channels))
                for task in TASKS
            }
        )
        self.seg = nn.Conv2d(channels, 1, 1)
        self.clf = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tasks) -> tuple[Tasks, Tensor, Tensor]:
        """What each task sees [B, inputs, H, W] -> features [B, C, H, W], seg logits [B, 1, H, W], clf [B, K]."""
        features = {task: self.refine[task](x[task]) for task in TASKS}
        return features, self.seg(features["seg"]), self.clf(features["clf"]).mean((2, 3))


class Message(nn.Module):
    """What one task tells another: ``sigmoid(W_g F) * (W F)``, both 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.value = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def attention(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in (0, 1)"""
        return torch.sigmoid(self.gate(x))

    def forward(self, x: Tensor) -> Tensor:
        message: Tensor = self.attention(x) * self.value(x)
        return message


class Distillation(nn.Module):
    """Multi-modal distillation of PAD-Net and MTI-Net: F_t' = F_t + sum over a != t of Message_{a->t}(F_a)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.messages = nn.ModuleDict({f"{s}_to_{t}": Message(channels) for t in TASKS for s in TASKS if s != t})

    def forward(self, features: Tasks) -> Tasks:
        """Per task [B, C, H, W] -> the same shape."""
        return {t: features[t] + sum(self.messages[f"{s}_to_{t}"](features[s]) for s in TASKS if s != t) for t in TASKS}

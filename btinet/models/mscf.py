"""Multi-Scale Context Fusion (paper Sec. 3; notes A6-A8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DILATIONS = (1, 2, 4)


class MSCF(nn.Module):
    """Three dilated separable convolutions, weighted per sample by squeeze-and-excitation, with a residual.

    ``y = x + Conv1x1(sum_r s_r * SepConv_r(x))``, where the scale weights ``s`` [B, 3] are a softmax over the
    three dilations, computed from the globally pooled input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_separable(channels, dilation) for dilation in DILATIONS)
        squeezed = channels // 8
        self.scale = nn.Sequential(
            nn.Linear(channels, squeezed),
            nn.ReLU(inplace=True),
            nn.Linear(squeezed, len(DILATIONS)),
            nn.Softmax(dim=1),
        )
        self.fuse = nn.Conv2d(channels, channels, 1)

    def scale_weights(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 3], each row summing to 1."""
        weights: Tensor = self.scale(x.mean((2, 3)))
        return weights

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        weights = self.scale_weights(x)
        mixed = torch.zeros_like(x)
        for index, branch in enumerate(self.branches):
            mixed = mixed + weights[:, index, None, None, None] * branch(x)
        fused: Tensor = x + self.fuse(mixed)
        return fused


def _separable(channels: int, dilation: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )

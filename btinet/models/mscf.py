"""Multi-Scale Context Fusion (paper Sec. 3; notes A6-A8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btinet.models.pooled import pool

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
        weights: Tensor = self.scale(pool(x).to(x.dtype))
        return weights

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        weights = self.scale_weights(x)
        first, *others = (branch(x) for branch in self.branches)
        mixed = weights[:, 0, None, None, None] * first
        for index, other in enumerate(others, start=1):
            mixed = torch.addcmul(mixed, weights[:, index, None, None, None], other)
        fused: Tensor = x + self.fuse(mixed)
        return fused


class DilatedDepthwise(nn.Conv2d):
    """A 3x3 convolution of every channel by itself, of any dilation.

    On a CPU torch's backward pass takes four times as long, in bfloat16 ten times, with a dilation as without. But
    every d-th pixel of every d-th row meets only its like, so a convolution of dilation d is one of dilation 1 of d * d
    small maps: the same sums in the same order.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        (d, _), (height, width) = self.dilation, x.shape[2:]
        pays = x.device.type == "cpu" and torch.is_grad_enabled() and 1 < d < min(height, width) / 3
        if not pays:
            return super().forward(x)
        rows, columns = -(-height // d), -(-width // d)
        padded = x.permute(0, 2, 3, 1)
        if (height, width) != (rows * d, columns * d):  # torch copies where there is nothing to pad, too
            padded = F.pad(padded, (0, 0, 0, columns * d - width, 0, rows * d - height))
        maps = padded.reshape(-1, rows, d, columns, d, self.in_channels).permute(0, 2, 4, 1, 3, 5)
        small = maps.reshape(-1, rows, columns, self.in_channels).permute(0, 3, 1, 2)
        convolved = F.conv2d(small, self.weight, padding=1, groups=self.in_channels).permute(0, 2, 3, 1)
        whole = convolved.reshape(-1, d, d, rows, columns, self.in_channels).permute(0, 3, 1, 4, 2, 5)
        return whole.reshape(-1, rows * d, columns * d, self.in_channels)[:, :height, :width].permute(0, 3, 1, 2)


def _separable(channels: int, dilation: int) -> nn.Sequential:
    return nn.Sequential(
        DilatedDepthwise(channels, dilation),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )

"""Attention U-Net.

O. Oktay et al. Attention U-Net: Learning Where to Look for the Pancreas. MIDL 2018.

Faithful: the grid attention gate. A coarser decoder level g says, by additive attention, which pixels of the skip x
are worth passing on; one coefficient a pixel, computed on g's grid (half of x's resolution) and applied before the
concatenation:

    alpha = sigmoid(psi(ReLU(theta(x) + phi(g)))),   gated = W(up(alpha) * x)

theta is a 2x2 convolution of stride 2 without bias, phi and psi are 1x1 convolutions, up is bilinear, W a 1x1
convolution with BatchNorm.

Adapted:
- Two-dimensional, around the U-Net of unet.py on the shared encoder; the gates' inner width is half the skip's.
- All four skips are gated, the original leaves the finest alone; the deepest gating signal is P5 itself (the original
  puts a 1x1 convolution first); no deep supervision, which is an extra of the authors' release.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from btinet.config import ModelSettings
from btinet.models.baselines.blocks import upsample
from btinet.models.baselines.unet import UNet, UNetDecoder, UNetLevel
from btinet.models.method import About


class AttentionUNet(UNet):
    about = About(
        "Attention U-Net",
        "Oktay et al., Attention U-Net: Learning Where to Look for the Pancreas, MIDL 2018",
        ("seg",),
    )

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        self.decoder = AttentionUNetDecoder(self.encoder.channels, settings.decoder_channels, settings.dropout)


class AttentionUNetDecoder(UNetDecoder):
    """The U-Net's, with a gate on every skip: the coarser level gates what joins it."""

    def __init__(self, channels: list[int], widths: tuple[int, ...], dropout: float) -> None:
        super().__init__(channels, widths, dropout)
        *skips, bridge = channels
        self.levels = nn.ModuleList(
            GatedLevel(below, skip, width)
            for below, skip, width in zip((bridge, *widths), reversed(skips), widths, strict=False)
        )


class GatedLevel(UNetLevel):
    """Gate the skip, then as in the U-Net."""

    def __init__(self, inputs: int, skip: int, width: int) -> None:
        super().__init__(inputs, skip, width)
        self.gate = GridAttentionGate(skip, inputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return super().forward(x, self.gate(skip, x))


class GridAttentionGate(nn.Module):
    """Skip [B, C, 2H, 2W] and gating signal [B, Cg, H, W] -> gated skip [B, C, 2H, 2W]."""

    def __init__(self, skip: int, gating: int) -> None:
        super().__init__()
        inner = skip // 2
        self.theta = nn.Conv2d(skip, inner, 2, stride=2, bias=False)
        self.phi = nn.Conv2d(gating, inner, 1)
        self.psi = nn.Conv2d(inner, 1, 1)
        self.out = nn.Sequential(nn.Conv2d(skip, skip, 1), nn.BatchNorm2d(skip))  # W

    def attention(self, skip: Tensor, gating: Tensor) -> Tensor:
        """alpha in (0, 1), [B, 1, 2H, 2W]"""
        alpha = torch.sigmoid(self.psi(torch.relu(self.theta(skip) + self.phi(gating))))  # [B, 1, H, W]
        return upsample(alpha, 2)

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        gated: Tensor = self.out(self.attention(skip, gating) * skip)
        return gated

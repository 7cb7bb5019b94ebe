"""Decoder blocks: learned upsampling, attention-gated skip, double convolution (paper Sec. 3; notes A10-A12)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Upsample2x(nn.Module):
    """3x3 transposed convolution of stride 2, cropped to exactly twice the input's size.

    Keras' ``Conv2DTranspose(k=3, s=2, padding="same")``; torch's ``padding=1, output_padding=1`` crops the other
    edge and is not the same operation.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', 2H, 2W]"""
        height, width = x.shape[2:]
        up = F.conv_transpose2d(x, self.conv.weight, stride=2).permute(0, 2, 3, 1)  # as it lies in memory
        assert self.conv.bias is not None  # added here, since in the convolution it makes a CPU take twice as long
        biased = up[:, : 2 * height, : 2 * width] + self.conv.bias.to(up.dtype)
        return biased.permute(0, 3, 1, 2)


class AttentionGate(nn.Module):
    """Additive attention gate (Oktay et al. 2018): one map in (0, 1) that scales the skip connection.

    ``alpha = sigmoid(psi(ReLU(theta(skip) + phi(gating))))``
    """

    def __init__(self, skip_channels: int, gating_channels: int, inner_channels: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(skip_channels, inner_channels, 1, bias=False)
        self.phi = nn.Conv2d(gating_channels, inner_channels, 1)
        self.psi = nn.Conv2d(inner_channels, 1, 1)

    def attention(self, skip: Tensor, gating: Tensor) -> Tensor:
        """Skip [B, Cs, H, W] and gating signal [B, Cg, H, W] -> [B, 1, H, W]."""
        return torch.sigmoid(self.psi(torch.relu(self.theta(skip) + self.phi(gating))))

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        """The gated skip, [B, Cs, H, W]."""
        return skip * self.attention(skip, gating)


class DecoderLevel(nn.Module):
    """Upsample the level above, gate the encoder's skip with it, concatenate, convolve twice, drop out."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.up = Upsample2x(in_channels, out_channels)
        self.gate = AttentionGate(skip_channels, out_channels, out_channels // 2)
        self.conv = nn.Sequential(
            nn.Conv2d(out_channels + skip_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """[B, Cin, H, W] and skip [B, Cs, 2H, 2W] -> D_l [B, Cout, 2H, 2W]."""
        level: Tensor = self.dropout(self.before_dropout(x, skip))
        return level

    def before_dropout(self, x: Tensor, skip: Tensor) -> Tensor:
        """All of :meth:`forward` that is not random."""
        up = self.up(x)
        level: Tensor = self.conv(torch.cat([up, self.gate(skip, up)], dim=1))
        return level

"""U-Net.

O. Ronneberger, P. Fischer, T. Brox. U-Net: Convolutional Networks for Biomedical Image Segmentation. MICCAI 2015.

Faithful: an expanding path that mirrors the contracting one, each level a 2x2 up-convolution, concatenation with the
plain skip, and two 3x3 convolutions with ReLU; dropout at the end of the contracting path; a 1x1 head.

Adapted:
- The contracting path is the shared EfficientNet-B4, so the skips are its taps. The finest lies at half the input's
  resolution: a fifth level without a skip leads from there to the input's.
- Same padding and BatchNorm, as in nearly every use of it since; the original crops and has neither.
- The original's loss, weighted along touching cell borders, gives way to this project's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from btinet.config import ModelSettings
from btinet.models.baselines.blocks import double_conv
from btinet.models.encoder import Encoder
from btinet.models.method import About, Method
from btinet.models.output import Output


class UNet(Method):
    """Sizes below are those of the paper: 224x224 input, EfficientNet-B4."""

    about = About(
        "U-Net",
        "Ronneberger et al., U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015",
        ("seg",),
    )

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        self.encoder = Encoder(settings.encoder, settings.drop_path)
        self.decoder = UNetDecoder(self.encoder.channels, settings.decoder_channels, settings.dropout)
        self.head = UNetHead(settings.decoder_channels[-1])

    def encode(self, images: Tensor) -> list[Tensor]:
        return self.encoder(images)

    def decode(self, features: list[Tensor]) -> Output:
        return Output(self.head(self.decoder(features)), None, None)


class UNetDecoder(nn.Module):
    """The expanding path: P1..P5 (strides 2..32) -> 48@112, the finest skip's resolution."""

    def __init__(self, channels: list[int], widths: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        *skips, bridge = channels  # 144, 192, 336, 960; 1792
        self.dropout = nn.Dropout(dropout)
        self.levels = nn.ModuleList(
            UNetLevel(below, skip, width)
            for below, skip, width in zip((bridge, *widths), reversed(skips), widths, strict=False)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, p4, p5 = features
        x = self.dropout(p5)
        for level, skip in zip(self.levels, (self.dropout(p4), *reversed(skips)), strict=True):
            x = level(x, skip)  # 384@14, 192@28, 96@56, 48@112
        return x


class UNetLevel(nn.Module):
    """Up-convolution, concatenation with the skip, two convolutions."""

    def __init__(self, inputs: int, skip: int, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, width, 2, stride=2)
        self.conv = double_conv(skip + width, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """[B, Cin, H, W] and skip [B, Cs, 2H, 2W] -> [B, C, 2H, 2W]"""
        level: Tensor = self.conv(torch.cat([skip, self.up(x)], dim=1))
        return level


class UNetHead(nn.Sequential):
    """The last level, which has no skip, and the 1x1 head: 48@112 -> logits 1@224."""

    def __init__(self, inputs: int) -> None:
        width = inputs // 2
        super().__init__(
            nn.ConvTranspose2d(inputs, width, 2, stride=2), double_conv(width, width), nn.Conv2d(width, 1, 1)
        )

"""UNet++.

Z. Zhou, M. M. R. Siddiquee, N. Tajbakhsh, J. Liang. UNet++: A Nested U-Net Architecture for Medical Image Segmentation.
DLMIA 2018; and UNet++: Redesigning Skip Connections to Exploit Multiscale Features in Image Segmentation, IEEE TMI
2020.

Faithful: the whole nested graph. Node (i, j), level i and column j, sees every earlier node of its level and the
upsampled node below it:

    X[i][j] = H([X[i][0], ..., X[i][j-1], U(X[i+1][j-1])]),   j >= 1

H is two 3x3 convolutions, U a 2x2 up-convolution to the level's width. Deep supervision: a 1x1 head on each of
X[0][1..4], the loss averaged over the four; the prediction is the mean of their probabilities (the authors'
"accurate" mode).

    P1  X01  X02  X03  X04      144@112, then  48
    P2  X11  X12  X13           192@56,        96
    P3  X21  X22                336@28,       192
    P4  X31                     960@14,       384
    P5                          1792@7

Adapted:
- The first column is the shared EfficientNet-B4, whose finest tap has half the input's resolution: the heads' maps are
  upsampled bilinearly to the input's.
- BatchNorm in H, and dropout behind it as behind every level of BTI-Net's decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btinet.config import ModelSettings
from btinet.models.baselines.blocks import double_conv, upsample
from btinet.models.encoder import Encoder
from btinet.models.method import About, Method
from btinet.models.output import Output, Supervised


class UNetPP(Method):
    """Sizes below are those of the paper: 224x224 input, EfficientNet-B4."""

    about = About(
        "UNet++",
        "Zhou et al., UNet++: Redesigning Skip Connections to Exploit Multiscale Features in Image Segmentation, "
        "IEEE TMI 2020",
        ("seg",),
    )

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        self.encoder = Encoder(settings.encoder, settings.drop_path)
        self.decoder = NestedDecoder(self.encoder.channels, settings.decoder_channels, settings.dropout)
        self.heads = nn.ModuleList(nn.Conv2d(settings.decoder_channels[-1], 1, 1) for _ in self.encoder.channels[1:])

    def encode(self, images: Tensor) -> list[Tensor]:
        return self.encoder(images)

    def decode(self, features: list[Tensor]) -> Output:
        nodes = self.decoder(features)  # X[0][1..4], each 48@112
        logits = [upsample(head(node), 2) for head, node in zip(self.heads, nodes, strict=True)]
        heads = tuple(Supervised(one, None, 1 / len(logits)) for one in logits)
        return Output(mean_probability_logits(torch.stack(logits)), None, None, heads)


class NestedDecoder(nn.Module):
    """P1..P5 -> X[0][1], ..., X[0][4]."""

    def __init__(self, channels: list[int], widths: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.depth = len(channels) - 1
        level_widths = widths[::-1]  # levels 0..3: 48, 96, 192, 384
        self.nodes = nn.ModuleDict()
        for j in range(1, self.depth + 1):
            for i in range(self.depth + 1 - j):
                width = level_widths[i]
                below = channels[i + 1] if j == 1 else level_widths[i + 1]
                self.nodes[f"{i}{j}"] = Node(channels[i] + (j - 1) * width, below, width, dropout)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        x = [[feature] for feature in features]  # x[i][j]
        for j in range(1, self.depth + 1):
            for i in range(self.depth + 1 - j):
                x[i].append(self.nodes[f"{i}{j}"](x[i], x[i + 1][j - 1]))
        return x[0][1:]


class Node(nn.Module):
    """X[i][j]: its level's earlier nodes and the one below it -> [B, width, H, W]."""

    def __init__(self, before: int, below: int, width: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(below, width, 2, stride=2)  # U
        self.conv = nn.Sequential(*double_conv(before + width, width), nn.Dropout(dropout))  # H

    def forward(self, before: list[Tensor], below: Tensor) -> Tensor:
        node: Tensor = self.conv(torch.cat([*before, self.up(below)], dim=1))
        return node


def mean_probability_logits(logits: Tensor) -> Tensor:
    """Logits [N, ...] -> the logits [...] of the mean of their N probabilities, log(sum p) - log(sum 1 - p)."""
    return torch.logsumexp(F.logsigmoid(logits), 0) - torch.logsumexp(F.logsigmoid(-logits), 0)

"""MTANet: reverse addition attention for segmentation, an attention bottleneck for classification.

Y. Ling, Y. Wang, W. Dai, J. Yu, P. Liang, D. Kong. MTANet: Multi-Task Attention Network for Automatic Medical Image
Segmentation and Classification. IEEE Transactions on Medical Imaging 2024.

Faithful: receptive field blocks on the three deepest features and their partial decoder give a global map; three
stages of reverse addition attention refine it from coarse to fine; all four maps are supervised; the classifier fuses
an image stream and a clinical stream through a bottleneck. Convolutions are followed by ReLU and then BatchNorm.

Adapted:
- EfficientNet-B4's taps P2..P5 are projected to 64/128/320/512, the widths of the original's PVTv2-B2, whose strides
  they share.
- Our data has no clinical features. The original's eight are held at zero, which leaves of the first clinical layer
  its bias: a learned vector, and no invented information.
- Dropout before the last layer. The losses were not released; the four maps' are averaged.

Reconstructed: how the classifier's streams split into own and shared parts in each round (the sizes are known).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btinet.config import ModelSettings
from btinet.models.baselines.blocks import conv_bn_relu, upsample
from btinet.models.encoder import Encoder
from btinet.models.method import About, Method
from btinet.models.output import Output, Supervised

WIDTHS = {"paper": (64, 128, 320, 512), "tiny": (16, 24, 32, 48)}  # at strides 4, 8, 16, 32
DECODER_WIDTH = {"paper": 32, "tiny": 8}
SHARED = 5
"""Numbers that the classifier's streams share in each round."""


class MTANet(Method):
    """Sizes below are those of the paper: 224x224 input, EfficientNet-B4, x1..x4 = 64@56, 128@28, 320@14, 512@7."""

    about = About(
        "MTANet",
        "Ling et al., MTANet: Multi-Task Attention Network for Automatic Medical Image Segmentation and "
        "Classification, IEEE TMI 2024",
        ("seg", "clf"),
    )

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        self.encoder = Encoder(settings.encoder, settings.drop_path)
        widths, width = WIDTHS[settings.size], DECODER_WIDTH[settings.size]
        self.project = nn.ModuleList(
            conv_bn_relu(tap, c, kernel=1) for tap, c in zip(self.encoder.channels[1:], widths, strict=True)
        )
        self.receptive = nn.ModuleList(ReceptiveFieldBlock(c, width) for c in widths[1:])
        self.partial_decoder = PartialDecoder(width)
        self.stages = nn.ModuleList(  # 512 -> 320 -> 128 -> 64
            ReverseAdditionAttention(below, c) for below, c in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.clf_head = AttentionBottleneck(widths[-1], classes, settings.dropout)

    def encode(self, images: Tensor) -> list[Tensor]:
        return self.encoder(images)[1:]

    def decode(self, features: list[Tensor]) -> Output:
        """P2..P5"""
        x1, x2, x3, x4 = (project(tap) for project, tap in zip(self.project, features, strict=True))
        received = (block(x) for block, x in zip(self.receptive, (x2, x3, x4), strict=True))
        coarse = self.partial_decoder(*received)  # S_g, 1@28
        maps = [upsample(coarse, 8)]
        d, c = x4, F.interpolate(coarse, scale_factor=0.5, mode="bilinear")
        for stage, skip, stride in zip(self.stages, (x3, x2, x1), (16, 8, 4), strict=True):
            d, s = stage(d, skip, c)  # S_4 1@14, S_3 1@28, S_2 1@56
            maps.append(upsample(s, stride))
            c = upsample(s, 2)
        clf = self.clf_head(x4)
        supervised = (Supervised(seg, None, 1 / len(maps)) for seg in maps)
        return Output(maps[-1], clf, None, heads=(Supervised(None, clf, 1.0), *supervised))


class Conv(nn.Sequential):
    """Convolution without bias, ReLU, and only then BatchNorm."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int] = 3, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding="same", dilation=dilation, bias=False),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(outputs),
        )


class ReceptiveFieldBlock(nn.Module):
    """Four branches of growing reach, fused, with a shortcut (PraNet's RFB)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([Conv(inputs, width, 1)])
        for k in (3, 5, 7):
            self.branches.append(
                nn.Sequential(
                    Conv(inputs, width, 1),
                    Conv(width, width, (1, k)),
                    Conv(width, width, (k, 1)),
                    Conv(width, width, 3, dilation=k),
                )
            )
        self.fuse = Conv(len(self.branches) * width, width)
        self.shortcut = Conv(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 32, H, W]"""
        return torch.relu(self.fuse(torch.cat([branch(x) for branch in self.branches], 1)) + self.shortcut(x))


class PartialDecoder(nn.Module):
    """Multiplies each of the three features with the coarser ones, gathers them, and predicts the global map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.deep_to_middle, self.deep_to_fine, self.middle_to_fine = (Conv(width, width) for _ in range(3))
        self.up_deep, self.up_middle = Conv(width, width), Conv(2 * width, 2 * width)
        self.join_middle, self.join_fine = Conv(2 * width, 2 * width), Conv(3 * width, 3 * width)
        self.predict = nn.Sequential(Conv(3 * width, 3 * width), nn.Conv2d(3 * width, 1, 1))

    def forward(self, fine: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        """Strides 8, 16, 32, [B, 32, H, W] each -> S_g [B, 1, S/8, S/8]."""
        deep_up, middle_up = upsample(deep, 2), upsample(middle, 2)
        middle = self.deep_to_middle(deep_up) * middle
        fine = self.deep_to_fine(upsample(deep_up, 2)) * self.middle_to_fine(middle_up) * fine
        middle = self.join_middle(torch.cat([middle, self.up_deep(deep_up)], 1))
        fine = self.join_fine(torch.cat([fine, self.up_middle(upsample(middle, 2))], 1))
        global_map: Tensor = self.predict(fine)
        return global_map


class ReverseAdditionAttention(nn.Module):
    """Looks at what the coarser map has left out, and adds it: S = Conv((1 - sigmoid(c)) * d) + c."""

    def __init__(self, below: int, width: int) -> None:
        super().__init__()
        self.up = Conv(below, width)
        self.refine = nn.Sequential(Conv(width, width), Conv(width, width))
        self.change = Conv(width, 1)

    @staticmethod
    def reverse_attention(c: Tensor) -> Tensor:
        """In (0, 1): high where the map says background."""
        return 1 - torch.sigmoid(c)

    def forward(self, d: Tensor, skip: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """d [B, Cd, H, W], skip [B, C, 2H, 2W], map c [B, 1, 2H, 2W] -> the next d, of the skip's shape, and map."""
        d = self.refine(self.up(upsample(d, 2)) + skip)
        return d, self.change(self.reverse_attention(c) * d) + c


class AttentionBottleneck(nn.Module):
    """Image and clinical stream, which see each other only through a few shared numbers, the mean of both streams'.

    image 512 -> 35 | 5 -> 15 | 5 -> 10, clinical 8 -> 15 | 5 -> 5 | 5 -> 5; both ends -> K
    """

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.image = nn.ModuleList(nn.Linear(i, o) for i, o in ((channels, 40), (40, 20), (20, 10)))
        self.no_clinical = nn.Parameter(torch.empty(20).uniform_(-(8**-0.5), 8**-0.5))  # Linear(8, 20) of zeros
        self.clinical = nn.ModuleList(nn.Linear(i, o) for i, o in ((20, 10), (10, 5)))
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Linear(15, classes))

    def forward(self, x: Tensor) -> Tensor:
        """x4 [B, 512, H, W] -> class logits [B, K]."""
        image = torch.relu(self.image[0](x.mean((2, 3))))
        clinical = torch.relu(self.no_clinical).expand(image.shape[0], -1)
        for to_image, to_clinical in zip(self.image[1:], self.clinical, strict=True):
            shared = (image[:, -SHARED:] + clinical[:, -SHARED:]) / 2
            image = torch.relu(to_image(torch.cat([image[:, :-SHARED], shared], 1)))
            clinical = torch.relu(to_clinical(torch.cat([clinical[:, :-SHARED], shared], 1)))
        logits: Tensor = self.classify(torch.cat([image, clinical], 1))
        return logits

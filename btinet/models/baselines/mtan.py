"""MTAN.

S. Liu, E. Johns, A. J. Davison. End-to-End Multi-Task Learning with Attention. CVPR 2019.

Faithful: one shared network and, per task, a chain of soft masks over its features. At block j of the shared network,
with u_j its first and p_j its last activation, task i attends to

    a_ij = h_ij(g_ij([u_j; f_j(ahat_i,j-1)])),   ahat_ij = a_ij * p_j

g is a 1x1 convolution with BatchNorm and ReLU, h one with BatchNorm and sigmoid, both the task's own; f, shared by the
tasks, is a 3x3 convolution with BatchNorm and ReLU, then 2x2 max-pooling (in the decoder bilinear upsampling comes
before it). The masks are the only parts of a task's own besides its head, and tasks have no path to each other.

Adapted:
- The shared network is EfficientNet-B4 and a decoder without skips, where the original has SegNet; up-convolutions
  instead of unpooling, as the encoder keeps no pooling indices. So location finer than stride 32 reaches the
  segmentation only in P5's channels.
- p_j are the five taps, u_j the first expansion at the tap's resolution (the stem's activation for the first); g's
  width is a quarter of p's channels, as in the authors' ResNet version.
- Segmentation attends to encoder and decoder. Classification attends to the encoder; its last masked feature is
  averaged over space and classified, as in the authors' Visual Decathlon version. The shared decoder, and f in it, thus
  serve one task.
- The decoder ends at half the input's resolution, from where the segmentation head continues.
- The tasks' losses are weighted as in every joint method here; the authors' dynamic weight averaging is an option.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btinet.config import ModelSettings
from btinet.models.baselines.blocks import TASKS, PooledHead, conv_bn_relu, double_conv
from btinet.models.baselines.unet import UNetHead
from btinet.models.encoder import TAP_STAGES, Encoder
from btinet.models.method import About, Method
from btinet.models.output import Output


class MTAN(Method):
    """Sizes below are those of the paper: 224x224 input, EfficientNet-B4."""

    about = About(
        "MTAN",
        "Liu et al., End-to-End Multi-Task Learning with Attention, CVPR 2019",
        ("seg", "clf"),
    )

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        self.encoder = Encoder(settings.encoder, settings.drop_path)
        first = [layer.num_features for layer in first_activations(self.encoder)]  # 48, 192, 336, 672, 1632
        last = self.encoder.channels  # 144, 192, 336, 960, 1792
        widths = settings.decoder_channels
        between = widths[::-1]  # 48, 96, 192, 384: what f_1..f_4 make
        self.between = nn.ModuleList(conv_bn_relu(p, f) for p, f in zip(last, between, strict=False))
        self.masks = nn.ModuleDict(
            {
                task: nn.ModuleList(SoftMask(u + f, p) for u, f, p in zip(first, (0, *between), last, strict=True))
                for task in TASKS
            }
        )
        self.levels = nn.ModuleList(
            AttendedLevel(below, width) for below, width in zip((last[-1], *widths), widths, strict=False)
        )
        self.seg_head = UNetHead(widths[-1])
        self.clf_head = PooledHead(last[-1], classes, settings.dropout)

    def encode(self, images: Tensor) -> list[Tensor]:
        """-> u_1..u_5, p_1..p_5"""
        first: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _layer, _inputs, activation: first.append(activation))
            for layer in first_activations(self.encoder)
        ]
        try:
            last = self.encoder(images)
        finally:
            for hook in hooks:
                hook.remove()
        return first + last

    def decode(self, features: list[Tensor]) -> Output:
        first, last = features[:5], features[5:]
        attended = {task: self.attend(task, first, last) for task in TASKS}
        shared, seg = last[-1], attended["seg"]
        for level in self.levels:
            shared, seg = level(shared, seg)  # 384@14, 192@28, 96@56, 48@112
        return Output(self.seg_head(seg), self.clf_head(attended["clf"]), None)

    def attend(self, task: str, first: list[Tensor], last: list[Tensor]) -> Tensor:
        """The task's chain of masks along the encoder -> ahat_5, 1792@7."""
        masks: Any = self.masks[task]
        x: Tensor = masks[0](first[0]) * last[0]
        for f, mask, u, p in zip(self.between, masks[1:], first[1:], last[1:], strict=True):
            x = mask(torch.cat([u, F.max_pool2d(f(x), 2)], dim=1)) * p
        return x


class SoftMask(nn.Sequential):
    """h(g(.)): what a task sees [B, Cin, H, W] -> its mask in (0, 1), [B, C, H, W]."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__(
            conv_bn_relu(inputs, channels // 4, 1),  # g
            nn.Conv2d(channels // 4, channels, 1, bias=False),  # h
            nn.BatchNorm2d(channels),
            nn.Sigmoid(),
        )


class AttendedLevel(nn.Module):
    """A level of the shared decoder, and the task's mask over what it makes."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, width, 2, stride=2)
        self.conv = double_conv(width, width)
        self.between = conv_bn_relu(inputs, width)  # f
        self.mask = SoftMask(2 * width, width)

    def forward(self, shared: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shared and attended features, both [B, Cin, H, W] -> both [B, C, 2H, 2W]."""
        u = self.up(shared)
        p = self.conv(u)
        x = self.between(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))
        return p, self.mask(torch.cat([u, x], dim=1)) * p


def first_activations(encoder: Encoder) -> list[Any]:
    """The layers that make u_1..u_5: the stem's, then the first expansion in each tapped stage after its stride.

    A stage of one block (in small encoders) has no such expansion: the activation of its strided convolution, then.
    """
    net = encoder.net
    stages = [net.blocks[stage] for stage in TAP_STAGES]
    return [net.bn1] + [stage[1].bn1 if len(stage) > 1 else stage[0].bn2 for stage in stages]

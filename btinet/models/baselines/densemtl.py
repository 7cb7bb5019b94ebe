"""DenseMTL: two decoders that exchange features through cross-task attention (xTAM).

I. Lopes, T.-H. Vu, R. de Charette. Cross-task Attention Mechanism for Dense Multi-task Learning. WACV 2023.

Faithful: a decoder a task (ASPP without image pooling, then up-convolutions with reflection padding, ELU and plain
skips); near its end, at half the input's resolution, features pass between the tasks in both directions: attention of
the target's positions to the source's, scaled per channel by an alpha that starts at 0, beside the source's
self-attention. Predictions from both resolutions are supervised, the coarser as in PAD-Net before the exchange.

alpha = 0 silences the cross-task attention, not the whole exchange: the source's self-attention always passes.

Adapted:
- The encoder is EfficientNet-B4 in place of a dilated ResNet-101, so that the ASPP works at stride 32.
- The second task is classification, with a decoder of the same structure: its coarser prediction is a map of K logits,
  averaged; its final one averages the last features, with dropout before a linear layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btinet.config import ModelSettings
from btinet.models.baselines.blocks import TASKS, PooledHead, Tasks, conv_bn_relu, resize, upsample
from btinet.models.encoder import Encoder
from btinet.models.method import About, Method
from btinet.models.output import Output, Supervised

WIDTHS = {"paper": (256, 256, 128, 128, 64), "tiny": (16, 16, 16, 16, 8)}  # at strides 16, 8, 4, 2, 1
ASPP_WIDTH = {"paper": 256, "tiny": 8}
ASPP_DILATIONS = (6, 12, 18)
REDUCTION = 4
"""Attention is taken over a grid this much coarser: 28x28 positions of 112x112."""


class DenseMTL(Method):
    """Sizes below are those of the paper: 224x224 input, EfficientNet-B4."""

    about = About(
        "DenseMTL",
        "Lopes et al., Cross-task Attention Mechanism for Dense Multi-task Learning, WACV 2023",
        TASKS,
    )

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        self.encoder = Encoder(settings.encoder, settings.drop_path)
        *widths, last = WIDTHS[settings.size]
        exchanged = widths[-1]  # 128@112
        self.decoders = nn.ModuleDict(
            {task: TaskDecoder(self.encoder.channels, widths, ASPP_WIDTH[settings.size]) for task in TASKS}
        )
        self.side_heads = nn.ModuleDict({"seg": ReflectConv(exchanged, 1), "clf": nn.Conv2d(exchanged, classes, 1)})
        self.exchange = Exchange(exchanged)
        self.last = nn.ModuleDict({task: UpConv(exchanged, 0, last) for task in TASKS})
        self.seg_head = ReflectConv(last, 1)
        self.clf_head = PooledHead(last, classes, settings.dropout)

    def encode(self, images: Tensor) -> list[Tensor]:
        return self.encoder(images)

    def decode(self, features: list[Tensor]) -> Output:
        """P1..P5"""
        separate = {task: self.decoders[task](features) for task in TASKS}  # 128@112
        side_seg, side_clf = (self.side_heads[task](separate[task]) for task in TASKS)
        side = Supervised(upsample(side_seg, 2), side_clf.mean((2, 3)), 0.5)
        exchanged = self.exchange(separate)
        seg, clf = (self.last[task](exchanged[task]) for task in TASKS)  # 64@224
        final = self.seg_head(seg), self.clf_head(clf)
        return Output(*final, None, heads=(Supervised(*final, 0.5), side))


class TaskDecoder(nn.Module):
    """One task's decoder, up to where it meets the other's: P1..P5 -> 128@112."""

    def __init__(self, channels: list[int], widths: list[int], aspp_width: int) -> None:
        super().__init__()
        *skips, deepest = channels  # 144, 192, 336, 960; 1792
        self.aspp = ASPP(deepest, aspp_width)
        self.levels = nn.ModuleList(
            UpConv(below, skip, width)
            for below, skip, width in zip((aspp_width, *widths), reversed(skips), widths, strict=False)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, deepest = features
        x: Tensor = self.aspp(deepest)
        for level, skip in zip(self.levels, reversed(skips), strict=True):
            x = level(x, skip)  # 256@14, 256@28, 128@56, 128@112
        return x


class ASPP(nn.Module):
    """Atrous spatial pyramid: a 1x1 and three dilated 3x3 convolutions side by side, fused by a 1x1."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [conv_bn_relu(inputs, width, kernel=1), *(_dilated(inputs, width, d) for d in ASPP_DILATIONS)]
        )
        self.fuse = conv_bn_relu(len(self.branches) * width, width, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        fused: Tensor = self.fuse(torch.cat([branch(x) for branch in self.branches], 1))
        return fused


class UpConv(nn.Module):
    """Convolution, nearest upsampling, concatenation with the skip where there is one, convolution; ELU after both."""

    def __init__(self, inputs: int, skip: int, width: int) -> None:
        super().__init__()
        self.before = ReflectConv(inputs, width)
        self.after = ReflectConv(width + skip, width)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """[B, Cin, H, W] and skip [B, Cs, 2H, 2W] -> [B, C, 2H, 2W]"""
        x = F.interpolate(F.elu(self.before(x)), scale_factor=2)
        return F.elu(self.after(x if skip is None else torch.cat([x, skip], 1)))


class ReflectConv(nn.Conv2d):
    """3x3 with reflection padding; a map of one pixel, which cannot be reflected, is repeated."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1), mode="reflect" if min(x.shape[2:]) > 1 else "replicate"))


class Exchange(nn.Module):
    """Multi-task exchange block: every task's features plus what the other tasks say to it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.messages = nn.ModuleDict({f"{s}_to_{t}": XTAM(channels) for t in TASKS for s in TASKS if s != t})
        sources = len(TASKS) - 1
        self.fuse = nn.ModuleDict({task: conv_bn_relu(sources * channels, channels, kernel=1) for task in TASKS})

    def forward(self, x: Tasks) -> Tasks:
        """Per task [B, C, H, W] -> the same shape."""
        return {
            t: x[t] + self.fuse[t](torch.cat([self.messages[f"{s}_to_{t}"](x[s], x[t]) for s in TASKS if s != t], 1))
            for t in TASKS
        }


class XTAM(nn.Module):
    """Cross-task attention mechanism: what a source task's features say to a target task's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.source = nn.Conv2d(channels, channels, 3, padding=1)
        self.query = conv_bn_relu(channels, channels, kernel=1)
        self.key = conv_bn_relu(channels, channels, kernel=1)
        self.value = conv_bn_relu(channels, channels, kernel=1)
        self.alpha = nn.Parameter(torch.zeros(channels, 1, 1))
        self.self_value = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.self_gate = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.fuse = conv_bn_relu(channels + channels // 2, channels, kernel=1)

    def attention(self, source: Tensor, target: Tensor) -> Tensor:
        """Features on the coarse grid -> [B, N, N]: how much each target position (row) takes from each source one."""
        q, k = self.query(target).flatten(2), self.key(source).flatten(2)  # [B, C, N]
        return torch.softmax(q.mT @ k / q.shape[1] ** 0.5, dim=2)

    def correlated(self, source: Tensor, target: Tensor) -> Tensor:
        """Source features, gathered by their likeness to the target's: [B, C, H, W]."""
        coarse = F.max_pool2d(source, REDUCTION)
        attention = self.attention(coarse, F.interpolate(target, coarse.shape[2:], mode="bilinear"))
        gathered = self.value(coarse).flatten(2) @ attention.mT  # [B, C, N]
        return self.alpha * resize(gathered.unflatten(2, coarse.shape[2:]), source)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """[B, C, H, W] each -> the message, of the same shape."""
        source = torch.relu(self.source(source))
        own = self.self_value(source) * torch.sigmoid(self.self_gate(source))  # self-attention
        message: Tensor = self.fuse(torch.cat([own, self.correlated(source, target)], 1))
        return message


def _dilated(inputs: int, outputs: int, dilation: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )

"""MTI-Net: distillation between tasks at every scale, with feature propagation from coarse to fine.

S. Vandenhende, S. Georgoulis, L. Van Gool. MTI-Net: Multi-Scale Task Interaction Networks for Multi-Task Learning.
ECCV 2020.

Faithful: at each of the strides 4 to 32 two residual blocks a task and a supervised initial prediction; the Feature
Propagation Module hands every task's features down to the next finer scale; spatial attention distils between the
tasks at every scale; each task's distilled scales are brought to stride 4, concatenated and decoded (HRNet's head).
The exchange is one-way, from initial to final predictions. The propagation's softmax is over tasks, as the paper has
it (the authors' code normalises over neighbouring channels of one task).

Adapted:
- EfficientNet-B4's taps P2..P5 are projected to 48/96/192/384: raw, the modules would need over 100 M parameters.
- The second task is classification, which the paper has not: a dense task whose map of K logits is averaged, in the
  initial predictions and, with dropout, in the final one.
- The four initial predictions count together as much as the final one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import btinet.torchvision_compat  # noqa: F401  isort: skip  (must come before timm)
from timm.layers import SEModule
from timm.models.resnet import BasicBlock

from btinet.config import ModelSettings
from btinet.models.baselines.blocks import (
    TASKS,
    Distillation,
    InitialPredictions,
    PooledHead,
    Tasks,
    conv_bn_relu,
    residual,
    resize,
    upsample,
)
from btinet.models.encoder import Encoder
from btinet.models.method import About, Method
from btinet.models.output import Output, Supervised

STRIDES = (4, 8, 16, 32)


class MTINet(Method):
    """Sizes below are those of the paper: 224x224 input, EfficientNet-B4, scales 48@56, 96@28, 192@14, 384@7."""

    about = About(
        "MTI-Net",
        "Vandenhende et al., MTI-Net: Multi-Scale Task Interaction Networks for Multi-Task Learning, ECCV 2020",
        TASKS,
    )

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        self.encoder = Encoder(settings.encoder, settings.drop_path)
        widths = settings.decoder_channels[::-1]  # 48, 96, 192, 384
        coarser = (*widths[1:], 0)  # the coarsest scale gets nothing from above
        self.project = nn.ModuleList(
            conv_bn_relu(tap, width, kernel=1) for tap, width in zip(self.encoder.channels[1:], widths, strict=True)
        )
        self.initial = nn.ModuleList(
            InitialPredictions(BasicBlock, width + above, width, classes)
            for width, above in zip(widths, coarser, strict=True)
        )
        self.propagate = nn.ModuleList(FeaturePropagation(width) for width in widths[1:])  # from 96, 192, 384
        self.distil = nn.ModuleList(Distillation(width) for width in widths)
        every = sum(widths)  # 720
        self.seg_head = nn.Sequential(conv_bn_relu(every, every, kernel=1), nn.Conv2d(every, 1, 1))
        self.clf_head = nn.Sequential(
            conv_bn_relu(every, every, kernel=1), PooledHead(every, classes, settings.dropout)
        )

    def encode(self, images: Tensor) -> list[Tensor]:
        return self.encoder(images)[1:]

    def decode(self, features: list[Tensor]) -> Output:
        """P2..P5"""
        initial, distilled = [], []
        from_above: Tasks | None = None
        for scale in (3, 2, 1, 0):
            x = self.project[scale](features[scale])
            inputs = {task: torch.cat([x, resize(from_above[task], x)], 1) if from_above else x for task in TASKS}
            refined, seg, clf = self.initial[scale](inputs)
            initial.append(Supervised(upsample(seg, STRIDES[scale]), clf, 1 / len(STRIDES)))
            if scale > 0:
                from_above = self.propagate[scale - 1](refined)
            distilled.append(self.distil[scale](refined))

        # each task's scales together: 720@56
        seg, clf = (torch.cat([resize(maps[task], features[0]) for maps in distilled], 1) for task in TASKS)
        seg, clf = upsample(self.seg_head(seg), STRIDES[0]), self.clf_head(clf)
        return Output(seg, clf, None, heads=(Supervised(seg, clf, 1.0), *initial))


class FeaturePropagation(nn.Module):
    """Feature Propagation Module: what each task hands to the next finer scale.

    A mask shares the concatenated features out among the tasks, a residual block reduces them to one task's width, and
    squeeze-and-excitation picks from them what each task adds to its own features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        every = len(TASKS) * channels
        self.mask = nn.Sequential(
            residual(BasicBlock, every, every // 4),
            residual(BasicBlock, every // 4, every // 4),
            nn.Conv2d(every // 4, every, 1),
        )
        self.reduce = residual(BasicBlock, every, channels)
        squeezed = max(channels // 16, 6)  # 6, 12, 24; one or two alone, at tiny widths, could stay dead
        self.select = nn.ModuleDict({task: SEModule(channels, rd_channels=squeezed) for task in TASKS})

    def task_masks(self, concatenated: Tensor) -> Tensor:
        """[B, T*C, H, W] -> [B, T, C, H, W], a softmax over the T tasks."""
        masks: Tensor = self.mask(concatenated)
        return masks.unflatten(1, (len(TASKS), -1)).softmax(1)

    def forward(self, features: Tasks) -> Tasks:
        """Per task [B, C, H, W] -> the same shape."""
        concatenated = torch.cat([features[task] for task in TASKS], 1)
        shared = self.reduce(self.task_masks(concatenated).flatten(1, 2) * concatenated)
        return {task: self.select[task](shared) + features[task] for task in TASKS}

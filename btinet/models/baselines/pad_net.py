"""PAD-Net: initial predictions of every task, distillation between them, final predictions.

D. Xu, W. Ouyang, X. Wang, N. Sebe. PAD-Net: Multi-Tasks Guided Prediction-and-Distillation Network for Simultaneous
Depth Estimation and Scene Parsing. CVPR 2018.

Faithful: a front-end that aggregates the encoder's scales; per task two bottlenecks and a supervised initial
prediction; distillation guided by attention (the paper's module C), at one scale with 256 channels; per task two
bottlenecks and the final prediction. The messages start from the features under the initial predictions, as in the
re-implementation that its comparisons in the literature use.

Adapted:
- The front-end's scales are EfficientNet-B4's taps P2..P5, projected to 48/96/192/384 as for MTI-Net, brought to
  stride 4 and concatenated.
- The second task is classification: a dense task whose map of K logits is averaged in the initial prediction; in the
  final one the features are averaged, with dropout, before a linear layer.
- The paper's further initial tasks, contours and surface normals, have no labels here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import btinet.torchvision_compat  # noqa: F401  isort: skip  (must come before timm)
from timm.models.resnet import Bottleneck

from btinet.config import ModelSettings
from btinet.models.baselines.blocks import (
    TASKS,
    Distillation,
    InitialPredictions,
    PooledHead,
    conv_bn_relu,
    residual,
    resize,
    upsample,
)
from btinet.models.encoder import Encoder
from btinet.models.method import About, Method
from btinet.models.output import Output, Supervised

WIDTH = {"paper": 256, "tiny": 32}
STRIDE = 4


class PADNet(Method):
    """Sizes below are those of the paper: 224x224 input, EfficientNet-B4."""

    about = About(
        "PAD-Net",
        "Xu et al., PAD-Net: Multi-Tasks Guided Prediction-and-Distillation Network for Simultaneous Depth "
        "Estimation and Scene Parsing, CVPR 2018",
        TASKS,
    )

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        self.encoder = Encoder(settings.encoder, settings.drop_path)
        width = WIDTH[settings.size]
        scales = settings.decoder_channels[::-1]  # 48, 96, 192, 384
        self.project = nn.ModuleList(
            conv_bn_relu(tap, scale, kernel=1) for tap, scale in zip(self.encoder.channels[1:], scales, strict=True)
        )
        self.initial = InitialPredictions(Bottleneck, sum(scales), width, classes)
        self.distil = Distillation(width)
        self.seg_head = nn.Sequential(*_bottlenecks(width), nn.Conv2d(width, 1, 1))
        self.clf_head = nn.Sequential(*_bottlenecks(width), PooledHead(width, classes, settings.dropout))

    def encode(self, images: Tensor) -> list[Tensor]:
        return self.encoder(images)[1:]

    def decode(self, features: list[Tensor]) -> Output:
        """P2..P5"""
        scales = [project(tap) for project, tap in zip(self.project, features, strict=True)]
        x = torch.cat([resize(scale, scales[0]) for scale in scales], 1)  # 720@56
        refined, initial_seg, initial_clf = self.initial(dict.fromkeys(TASKS, x))  # 256@56
        distilled = self.distil(refined)
        seg, clf = upsample(self.seg_head(distilled["seg"]), STRIDE), self.clf_head(distilled["clf"])
        heads = Supervised(seg, clf, 1.0), Supervised(upsample(initial_seg, STRIDE), initial_clf, 1.0)
        return Output(seg, clf, None, heads)


def _bottlenecks(width: int) -> tuple[nn.Module, nn.Module]:
    return residual(Bottleneck, width, width), residual(Bottleneck, width, width)

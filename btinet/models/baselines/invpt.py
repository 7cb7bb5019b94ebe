"""InvPT: tokens of all tasks in one transformer that raises their resolution stage by stage.

H. Ye, D. Xu. Inverted Pyramid Multi-task Transformer for Dense Scene Understanding. ECCV 2022.

Faithful: per task a preliminary decoder of two Conv-BN-ReLU and a supervised preliminary prediction, whose embedding
(64) is concatenated to the features (512); three stages of C = 576, C/2 and C/4 channels, each at twice the resolution
of the one before; in each, self-attention among the pixels of all tasks together, queries from a strided depthwise
convolution and keys and values pooled by 2, 4, 8, two heads; the attention scores of a stage passed on to the next and
fused with its own by a 1x1 convolution over the heads; encoder features added at every stage; the three stages' maps
aligned, summed and decoded per task.

Adapted:
- The encoder is the shared EfficientNet-B4 in place of ViT-L: its last tap P5, projected to 512 and brought to stride
  16, takes the place of the ViT's output, so that the stages have strides 16, 8 and 4 as in the paper; their encoder
  features are P4, P3 and P2, projected by 1x1.
- The second task is classification, which the paper has not: a dense task whose map of K logits is averaged in the
  preliminary prediction; in the final one the features are averaged, with dropout, before a linear layer.
- Reconstructed, as the notes leave it open: convolutions of the stages are shared by the tasks; scores are passed on
  before their softmax.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

import btinet.torchvision_compat  # noqa: F401  isort: skip  (must come before timm)
from timm.layers import LayerNorm2d, Mlp

from btinet.config import ModelSettings
from btinet.models.baselines.blocks import TASKS, PooledHead, conv_bn_relu, double_conv, upsample
from btinet.models.encoder import Encoder
from btinet.models.method import About, Method
from btinet.models.output import Output, Supervised

STRIDES = (16, 8, 4)
"""Of the stages."""
HEADS = 2


class Size(NamedTuple):
    features: int
    predictions: int
    """Width of an embedded preliminary prediction."""


SIZES = {"paper": Size(512, 64), "tiny": Size(24, 8)}


class InvPT(Method):
    """Sizes below are those of the paper: 224x224 input, EfficientNet-B4. In the transformer the tasks' maps of an
    image follow each other along the batch: [B*T, C, H, W]."""

    about = About(
        "InvPT",
        "Ye and Xu, Inverted Pyramid Multi-task Transformer for Dense Scene Understanding, ECCV 2022",
        TASKS,
    )

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        self.encoder = Encoder(settings.encoder, settings.drop_path)
        _, p2, p3, p4, p5 = self.encoder.channels
        features, predictions = SIZES[settings.size]
        outputs = {"seg": 1, "clf": classes}

        self.project = conv_bn_relu(p5, features, kernel=1)
        self.preliminary = nn.ModuleDict({task: double_conv(features, features) for task in TASKS})
        self.predict = nn.ModuleDict({task: nn.Conv2d(features, outputs[task], 1) for task in TASKS})
        self.embed = nn.ModuleDict({task: nn.Conv2d(outputs[task], predictions, 1) for task in TASKS})

        width = features + predictions
        widths = (width, width // 2, width // 4)  # 576@14, 288@28, 144@56
        self.ups = nn.ModuleList(conv_bn_relu(above, below) for above, below in pairwise(widths))
        self.skips = nn.ModuleList(conv_bn_relu(tap, w, kernel=1) for tap, w in zip((p4, p3, p2), widths, strict=True))
        self.blocks = nn.ModuleList(UPTransformerBlock(w, stage) for stage, w in enumerate(widths))
        self.align = nn.ModuleList(nn.Conv2d(w, widths[-1], 1) for w in widths)
        self.seg_head = nn.Sequential(conv_bn_relu(widths[-1], widths[-1]), nn.Conv2d(widths[-1], 1, 1))
        self.clf_head = nn.Sequential(
            conv_bn_relu(widths[-1], widths[-1]), PooledHead(widths[-1], classes, settings.dropout)
        )

    def encode(self, images: Tensor) -> list[Tensor]:
        return self.encoder(images)[1:]

    def decode(self, features: list[Tensor]) -> Output:
        """P2..P5"""
        p2, p3, p4, p5 = features
        shared = upsample(self.project(p5), 2)  # 512@14
        own = {task: self.preliminary[task](shared) for task in TASKS}
        guess = {task: self.predict[task](own[task]) for task in TASKS}
        tokens = [torch.cat([own[task], self.embed[task](guess[task])], 1) for task in TASKS]  # 576@14

        x = torch.stack(tokens, 1).flatten(0, 1)  # [B*T, 576, 14, 14]
        scores: Tensor | None = None
        total: Tensor | None = None
        for stage, skip in enumerate((p4, p3, p2)):
            if stage > 0:
                x = self.ups[stage - 1](upsample(x, 2))  # twice the resolution, half the channels
            x = x + self.skips[stage](skip).repeat_interleave(len(TASKS), 0)
            x, scores = self.blocks[stage](x, scores)
            aligned = upsample(self.align[stage](x), STRIDES[stage] // STRIDES[-1])  # 144@56
            total = aligned if total is None else total + aligned
        assert total is not None
        seg, clf = total.unflatten(0, (-1, len(TASKS))).unbind(1)

        seg_logits, clf_logits = upsample(self.seg_head(seg), STRIDES[-1]), self.clf_head(clf)
        if not self.training:
            return Output(seg_logits, clf_logits, None)
        preliminary = Supervised(upsample(guess["seg"], STRIDES[0]), guess["clf"].mean((2, 3)), 1.0)
        return Output(seg_logits, clf_logits, None, (Supervised(seg_logits, clf_logits, 1.0), preliminary))


class UPTransformerBlock(nn.Module):
    """Attention among all tasks' pixels, then a feed-forward network; both residual and after a LayerNorm."""

    def __init__(self, width: int, stage: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(width)
        self.attn = CrossTaskAttention(width, stage)
        self.norm2 = LayerNorm2d(width)
        self.ffn = Mlp(width, 4 * width, use_conv=True)

    def forward(self, x: Tensor, message: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B*T, C, H, W] and the scores of the stage before -> [B*T, C, H, W], this stage's scores."""
        attended, scores = self.attn(self.norm1(x), message)
        x = x + attended
        return x + self.ffn(self.norm2(x)), scores


class CrossTaskAttention(nn.Module):
    """Self-attention among the tokens of all tasks, on reduced maps.

    Queries are at half the stage's resolution. Keys and values are pooled to the same resolution (7x7) at every
    stage, so that the scores of two stages differ in their rows only.
    """

    def __init__(self, width: int, stage: int) -> None:
        super().__init__()
        self.query = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 1),
        )
        self.pool = nn.AvgPool2d(2 ** (stage + 1))
        self.key = nn.Conv2d(width, width, 1, bias=False)  # the softmax would cancel a bias
        self.value = nn.Conv2d(width, width, 1)
        self.fuse = nn.Conv2d(2 * HEADS, HEADS, 1, bias=False) if stage > 0 else None
        self.proj = nn.Conv2d(width, width, 1)

    def scores(self, x: Tensor, message: Tensor | None) -> Tensor:
        """Logits of the attention [B, heads, T*hq*wq, T*hk*wk], fused with those of the stage before."""
        q, k = _tokens(self.query(x)), _tokens(self.key(self.pool(x)))
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if self.fuse is None:
            return scores
        assert message is not None
        # each key's map over the query pixels of a task is enlarged as an image
        height, width = x.shape[2] // 4, x.shape[3] // 4
        maps = message.unflatten(2, (len(TASKS), height * width)).flatten(0, 2)  # [B*heads*T, hm*wm, Nk]
        enlarged = upsample(maps.mT.unflatten(2, (height, width)), 2).flatten(2).mT.reshape(scores.shape)
        fused: Tensor = self.fuse(torch.cat([scores, enlarged], 1))
        return fused

    def forward(self, x: Tensor, message: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B*T, C, H, W] and the scores of the stage before -> [B*T, C, H, W], this stage's scores."""
        scores = self.scores(x, message)
        values = _tokens(self.value(self.pool(x)))
        attended = scores.softmax(-1) @ values  # [B, heads, T*hq*wq, C/heads]
        height, width = x.shape[2] // 2, x.shape[3] // 2
        maps = attended.transpose(1, 2).reshape(x.shape[0], height * width, -1).mT.unflatten(2, (height, width))
        return self.proj(upsample(maps, 2)), scores


def _tokens(x: Tensor) -> Tensor:
    """[B*T, C, h, w] -> [B, heads, T*h*w, C/heads]"""
    tokens = x.flatten(2).mT.reshape(x.shape[0] // len(TASKS), -1, HEADS, x.shape[1] // HEADS)
    return tokens.transpose(1, 2)

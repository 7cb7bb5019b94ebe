"""DynaShare: which layers of a shared network run is decided per task and per image.

E. Rahimian, G. Javadi, F. Tung, G. Oliveira. DynaShare: Task and Instance Conditioned Parameter Sharing for
Multi-Task Learning. CVPR Workshops 2023.

Faithful: two levels of gates over the encoder's residual blocks. A policy per task and block (as in AdaShare) chooses
the layers of each task; within them a small network per task and block reads its input and chooses for each image.
Both are binary, drawn with Gumbel-softmax (straight-through) in training and the likelier choice in evaluation. The
tasks share every weight but the gates and heads.

Adapted:
- The blocks are EfficientNet-B4's inverted residuals that have a shortcut, in place of ResNet's; the others, which
  change resolution or width, always run. Each task passes through the encoder by itself.
- Segmentation decodes its taps with U-Net's decoder, as the other methods here do, in place of ASPP.
- Trained in one go by the shared loop: without the original's warm-up and temperature schedule; gates start likely
  open instead. The rewards for skipping blocks and for sharing them are AdaShare's (Sun et al., NeurIPS 2020), on the
  task policies; what the original adds on the image gates is not known in detail and left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btinet.config import ModelSettings
from btinet.models.baselines.blocks import TASKS, PooledHead
from btinet.models.baselines.unet import UNetDecoder, UNetHead
from btinet.models.encoder import TAP_STAGES, Encoder, expand_and_finish
from btinet.models.method import About, Method
from btinet.models.output import Output
from btinet.ranks import own_draws

OPEN = 2.0
"""Logit of executing against that of skipping, at the start: each gate is open with probability 0.88."""
SPARSITY = SHARING = 0.05
"""Weights of the two rewards, AdaShare's."""
HIDDEN = 16
"""Units of an image gate's hidden layer."""


class DynaShare(Method):
    about = About(
        "DynaShare",
        "Rahimian et al., DynaShare: Task and Instance Conditioned Parameter Sharing for Multi-Task Learning, "
        "CVPR Workshops 2023",
        TASKS,
    )

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        self.encoder = Encoder(settings.encoder, settings.drop_path)
        self.gating = nn.ModuleDict(
            {
                task: nn.ModuleDict(
                    {
                        f"{s}_{b}": BlockGate(block.conv_pw.in_channels)
                        for s, stage in enumerate(self.encoder.net.blocks)
                        for b, block in enumerate(stage)
                        if block.has_skip
                    }
                )
                for task in TASKS
            }
        )
        self.decoder = UNetDecoder(self.encoder.channels, settings.decoder_channels, settings.dropout)
        self.seg_head = UNetHead(settings.decoder_channels[-1])
        self.clf_head = PooledHead(self.encoder.channels[-1], classes, settings.dropout)

    def encode(self, images: Tensor) -> list[Tensor]:
        """RGB [B, 3, S, S] in [0, 1] -> segmentation's P1..P5 and classification's P5."""
        net = self.encoder.net
        stem = net.bn1(net.conv_stem((images - self.encoder.mean) / self.encoder.std))
        return [*self.taps(stem, "seg"), self.taps(stem, "clf")[-1]]

    def taps(self, x: Tensor, task: str) -> list[Tensor]:
        """The encoder's forward pass, with the task's gates: what the stem made -> P1..P5."""
        net, taps = self.encoder.net, []
        gates: Any = self.gating[task]
        for s, stage in enumerate(net.blocks):
            for b, block in enumerate(stage):
                if block.has_skip:
                    x = gates[f"{s}_{b}"](x, block)
                elif b == 0 and s in TAP_STAGES:
                    x, tap = expand_and_finish(block, x)
                    taps.append(tap)
                else:
                    x = block(x)
        return [*taps, net.bn2(net.conv_head(x))]

    def decode(self, features: list[Tensor]) -> Output:
        *seg, clf = features
        penalty = self.penalty() if self.training else None
        return Output(self.seg_head(self.decoder(seg)), self.clf_head(clf), None, penalty=penalty)

    def penalty(self) -> Tensor:
        """What skipping and sharing blocks saves, to be minimised; p: the policies' probabilities of executing.

        SPARSITY * sum_tl log p_tl + SHARING * sum_l (L - l) / L * |p_seg,l - p_clf,l|: sharing matters most early.
        """
        policies: Any = self.gating
        p = torch.stack([torch.cat([gate.policy for gate in policies[t].values()]).softmax(1)[:, 0] for t in TASKS])
        depth = torch.arange(p.shape[1], device=p.device) / p.shape[1]
        return SPARSITY * p.log().sum() + SHARING * ((1 - depth) * (p[0] - p[1]).abs()).sum()


class BlockGate(nn.Module):
    """One task's gates of one residual block: x + u * g(x) * F(x), u of the task and g of the image, both 0 or 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.policy = nn.Parameter(torch.tensor([[OPEN, 0.0]]))  # logits: execute, skip
        last = nn.Linear(HIDDEN, 2)
        with torch.no_grad():
            last.bias.copy_(torch.tensor([OPEN, 0.0]))
        self.image = nn.Sequential(nn.Linear(channels, HIDDEN), nn.ReLU(inplace=True), last)

    def task_gate(self) -> Tensor:
        """[1]"""
        return self.draw(self.policy)

    def image_gate(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B]"""
        logits = self.image(x.mean((2, 3)))
        return own_draws(self.draw, logits) if self.training else self.draw(logits)

    def draw(self, logits: Tensor) -> Tensor:
        """[N, 2] -> 1 where the block is executed, else 0: [N]."""
        if self.training:
            return F.gumbel_softmax(logits.float(), hard=True)[:, 0]
        return (logits[:, 0] > logits[:, 1]).float()

    def forward(self, x: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        """``block`` is x -> x + F(x)."""
        task = self.task_gate()
        # on the meta device (models/cost.py) there are no values to decide by: every block counts as executed
        if not self.training and not task.is_meta and not task:
            return x  # a block outside the task's policy costs nothing
        execute = (task * self.image_gate(x)).view(-1, 1, 1, 1)
        return x + execute.to(x) * (block(x) - x)

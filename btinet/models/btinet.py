"""BTI-Net: the model and nothing else (paper Sec. 3, Fig. 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from btinet.config import LEVELS, ModelSettings
from btinet.models.decoder import DecoderLevel, Upsample2x
from btinet.models.encoder import Encoder
from btinet.models.method import About, Method
from btinet.models.mscf import MSCF
from btinet.models.output import Output, Signals
from btinet.models.pooled import in_float32, modulate, pool
from btinet.models.tim import TIM
from btinet.models.upa import UPA


class BTINet(Method):
    """Segmentation and classification that exchange features at four decoder levels, gated per sample.

    In a precision below float32 the convolutions compute in it; what is pooled does not: interaction, gates, signals
    and the classification.

    Sizes below are those of the paper: 224x224 input, EfficientNet-B4, levels D1..D4 of 384@14, 192@28, 96@56, 48@112.
    """

    levels: Any  # DecoderLevel each; ModuleList has no types

    about = About(
        "BTI-Net",
        "Al Shafi et al., BTI-Net: Bidirectional Decoder-Level Task Interaction via Uncertainty-Aware Gating for "
        "Multi-Task Medical Image Analysis, arXiv 2026",
        ("seg", "clf"),
    )

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        self.encoder = Encoder(settings.encoder, settings.drop_path)
        s1, s2, s3, s4, bridge = self.encoder.channels  # 144, 192, 336, 960, 1792
        self.context = nn.ModuleList(MSCF(c) if settings.mscf else nn.Identity() for c in self.encoder.channels)

        widths = settings.decoder_channels
        self.levels = nn.ModuleList(
            DecoderLevel(below, skip, width, settings.dropout)
            for below, skip, width in zip((bridge, *widths), (s4, s3, s2, s1), widths, strict=False)
        )
        # f_l starts from the encoder stage whose abstraction fits the level: bridge, s4, s3, s2
        self.clf_start = nn.ModuleList(nn.Linear(c, settings.clf_dim) for c in (bridge, s4, s3, s2))
        self.tim = nn.ModuleList(TIM(width, settings.clf_dim, settings.tau) for width in widths if settings.tim)
        self.upa = nn.ModuleList(
            UPA(
                width,
                settings.clf_dim,
                settings.gate_hidden,
                settings.gate_projection,
                "off" if level in settings.ungated else settings.gate,
            )
            for level, width in zip(LEVELS, widths, strict=True)
            if settings.upa
        )
        self.seg_head = SegmentationHead(widths[-1])
        self.clf_head = ClassificationHead(s2 + s3 + s4 + bridge + 4 * settings.clf_dim, classes, settings.dropout)

    def encode(self, images: Tensor) -> list[Tensor]:
        """RGB [B, 3, S, S] in [0, 1] -> s1..s4 and bridge after MSCF, and D1 before its dropout, the first thing that
        is random in Monte Carlo dropout."""
        features = [context(tap) for context, tap in zip(self.context, self.encoder(images), strict=True)]
        s4, bridge = features[3:]
        return [*features, self.levels[0].before_dropout(bridge, s4)]

    def decode(self, features: list[Tensor]) -> Output:
        """What :meth:`encode` returned -> prediction and signals."""
        s1, s2, s3, s4, bridge, d = features
        pooled_stages = [pool(stage) for stage in (bridge, s4, s3, s2)]
        vectors: list[Tensor] = []
        signals: list[Signals] = []
        for level, skip in enumerate((None, s3, s2, s1)):
            d = self.levels[0].dropout(d) if skip is None else self.levels[level](d, skip)
            with in_float32(d.device):
                f = self.clf_start[level](pooled_stages[level])
                if self.tim:
                    pooled = pool(d)
                    interaction = self.tim[level](pooled, f)
                    if self.upa:
                        d, f, level_signals = self.upa[level](d, pooled, f, interaction)
                        signals.append(level_signals)
                    else:  # ablation: the whole interaction, always
                        d, f = modulate(d, interaction.mu), interaction.f_enh  # Eq. 8
            vectors.append(f)
        descriptor = torch.cat([*reversed(pooled_stages), *vectors], dim=1)  # 3280 + 4 * 256 = 4304
        seg_logits = self.seg_head(d)
        with in_float32(d.device):
            return Output(seg_logits, self.clf_head(descriptor), Signals.stack(signals) if signals else None)

    def gated_levels(self) -> list[int]:
        """Which of the four levels have a gate that learns: all, but in ablations."""
        return [level for level, upa in enumerate(self.upa) if upa.learns]

    def gates(self) -> nn.ModuleList:
        """The gate networks of these levels: all that Stage 2 trains."""
        return nn.ModuleList(self.upa[level] for level in self.gated_levels())


class SegmentationHead(nn.Module):
    """D4 [B, C, S/2, S/2] -> logits [B, 1, S, S]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = Upsample2x(channels, 24)
        self.conv = nn.Sequential(nn.Conv2d(24, 16, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(16, 1, 1))

    def forward(self, d: Tensor) -> Tensor:
        logits: Tensor = self.conv(self.up(d))
        return logits


class ClassificationHead(nn.Sequential):
    """Descriptor [B, D] (4304 in the paper) -> class logits [B, K]."""

    def __init__(self, features: int, classes: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(features, 256),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(256),
            nn.Dropout(dropout),
            nn.Linear(256, classes),
        )

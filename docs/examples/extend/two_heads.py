"""Two heads on the encoder's last map and nothing else: the smallest joint method. Author et al., Title, Venue 2026."""

from __future__ import annotations

from torch import Tensor, nn

from btinet.config import ModelSettings
from btinet.models.baselines.blocks import PooledHead, upsample
from btinet.models.encoder import Encoder
from btinet.models.method import About, Method
from btinet.models.output import Output


class TwoHeads(Method):
    about = About("Two heads", "Author et al., Title, Venue 2026", ("seg", "clf"))

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        self.encoder = Encoder(settings.encoder, settings.drop_path)
        self.seg_head = nn.Conv2d(self.encoder.channels[-1], 1, 1)
        self.clf_head = PooledHead(self.encoder.channels[-1], classes, settings.dropout)

    def encode(self, images: Tensor) -> list[Tensor]:
        return self.encoder(images)[-1:]

    def decode(self, features: list[Tensor]) -> Output:
        (p5,) = features
        return Output(upsample(self.seg_head(p5), 32), self.clf_head(p5), None)

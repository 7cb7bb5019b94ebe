"""What every method is: an encoder part without randomness in evaluation, and the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from btinet.config import ModelSettings
from btinet.models.encoder import Encoder
from btinet.models.output import Output


class About(NamedTuple):
    """A method for people: `btinet models list`, docs/methods.md."""

    title: str
    """Its name as its authors write it."""
    citation: str
    """First author, title, venue, year."""
    tasks: tuple[str, ...]
    """``("seg",)`` or ``("seg", "clf")``."""


class Method(nn.Module, ABC):
    """Base of BTI-Net and of every baseline.

    A subclass is built from (ModelSettings, number of classes) and sets ``about``.
    """

    about: ClassVar[About]
    shares_encoder: ClassVar[bool] = True
    """Its features are those of the shared EfficientNet, ``encoder``; False for an encoder of its own."""
    encoder: Encoder

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        """A freshly initialised network for so many classes."""
        super().__init__()

    @abstractmethod
    def encode(self, images: Tensor) -> list[Tensor]:
        """RGB [B, 3, S, S] in [0, 1] -> features. Nothing in it is random in eval mode, so that Monte Carlo dropout
        computes it once."""

    @abstractmethod
    def decode(self, features: list[Tensor]) -> Output:
        """Features -> prediction."""

    def forward(self, images: Tensor) -> Output:
        """RGB [B, 3, S, S] in [0, 1] -> segmentation logits [B, 1, S, S], class logits [B, K] or None."""
        return self.decode(self.encode(images))

    def last_shared(self) -> nn.Parameter:
        """The last weights that all tasks share, whose gradients GradNorm compares."""
        weight: nn.Parameter = self.encoder.net.conv_head.weight
        return weight

    def gates(self) -> nn.ModuleList:
        """What Stage 2 trains; empty for methods without gates."""
        return nn.ModuleList()

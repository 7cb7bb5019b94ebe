"""What every method is: an encoder part without randomness in evaluation, and the rest."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from btinet.config import ModelSettings
from btinet.errors import InputError
from btinet.models.encoder import Encoder, read_weights
from btinet.models.output import Output

log = logging.getLogger(__name__)


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
    transformer: ClassVar[str | None] = None
    """The pretrained model that its transformer layers can start from; None where it has none of one's size."""
    encoder: Encoder

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        """A freshly initialised network for so many classes."""
        super().__init__()
        self.precision = settings.precision

    def forward(self, images: Tensor) -> Output:
        """RGB [B, 3, S, S] in [0, 1] -> segmentation logits [B, 1, S, S], class logits [B, K] or None."""
        return self.output(self.features(images))

    def features(self, images: Tensor) -> list[Tensor]:
        """:meth:`encode` in the model's precision."""
        with self.arithmetic(images.device):
            return self.encode(images)

    def output(self, features: list[Tensor]) -> Output:
        """:meth:`decode` in the model's precision; float32 comes out."""
        with self.arithmetic(features[0].device):
            output = self.decode(features)
        return output if self.precision == "float32" else output.float()

    def arithmetic(self, device: torch.device) -> AbstractContextManager[Any]:
        """In which the model's layers compute in its precision."""
        return nullcontext() if self.precision == "float32" else torch.autocast(device.type, torch.bfloat16)

    @abstractmethod
    def encode(self, images: Tensor) -> list[Tensor]:
        """RGB [B, 3, S, S] in [0, 1] -> features. Nothing in it is random in eval mode, so that Monte Carlo dropout
        computes it once."""

    @abstractmethod
    def decode(self, features: list[Tensor]) -> Output:
        """Features -> prediction."""

    def last_shared(self) -> nn.Parameter:
        """The last weights that all tasks share, whose gradients GradNorm compares."""
        weight: nn.Parameter = self.encoder.net.conv_head.weight
        return weight

    def transformer_parts(self) -> list[tuple[str, Tensor]]:
        """What starts from ``transformer``'s weights: names in its file, own tensors."""
        return []

    def load_transformer(self, path: Path) -> None:
        """Start the transformer layers from ImageNet weights; the log says how much of the method that is.

        What the file has beyond :meth:`transformer_parts` (a head, deeper stages, a class token and its position) is
        ignored.

        Args:
            path: safetensors file of ``transformer``.

        Raises:
            InputError: the file is not safetensors, or lacks a part or has it in another shape.
        """
        weights = read_weights(path)
        if {"cls_token", "pos_embed"} <= weights.keys():
            weights["pos_embed"] = weights["pos_embed"][:, 1:]
        parts = self.transformer_parts()
        named_parts = dict(parts)  # a tensor of the file may start several
        wrong = [name for name, own in named_parts.items() if name not in weights or weights[name].shape != own.shape]
        if wrong:
            raise InputError(
                f"{path}: these are not weights of {self.transformer}: {len(wrong)} of {len(named_parts)} tensors are "
                f"missing or do not fit (first: {', '.join(wrong[:3])}); docs/methods.md says how to get the file"
            )
        with torch.no_grad():
            for name, own in parts:
                own.copy_(weights[name])
        started = sum(own.numel() for _, own in parts) / 1e6
        total = sum(parameter.numel() for parameter in self.parameters()) / 1e6
        log.warning(
            "%s: %.1f of %.1f million parameters start from %s", self.about.title, started, total, self.transformer
        )

    def gated_levels(self) -> list[int]:
        """The levels, counted from 0 for D1, whose weights L_gate supervises; none for methods without gates."""
        return []

    def gates(self) -> nn.ModuleList:
        """What Stage 2 trains; empty for methods without gates."""
        return nn.ModuleList()


def named(prefix: str, module: nn.Module) -> list[tuple[str, Tensor]]:
    """A module's parameters under the names that they have in a file: ``prefix.name``."""
    return [(f"{prefix}.{name}", parameter) for name, parameter in module.named_parameters()]

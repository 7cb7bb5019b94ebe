"""What every method returns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Signals(NamedTuple):
    """Per-sample, per-level numbers that come out with a prediction; each [B, 4], levels D1..D4."""

    w_seg: Tensor
    """Gate weight of the decoder map, in [0, 1] (Eq. 12)."""
    w_clf: Tensor
    """Gate weight of the classification vector, in [0, 1] (Eq. 12)."""
    align: Tensor
    """Cosine of the two projected TIM residuals, in [-1, 1] (Eq. 9)."""
    seg_energy: Tensor
    """Mean absolute spatial gradient of the pre-TIM decoder map, >= 0 (Eq. 10)."""
    clf_energy: Tensor
    """log(1 + variance) of the enhanced classification vector, >= 0 (Eq. 11)."""
    tim_dclf_l1: Tensor
    """Mean absolute change that TIM proposes for the classification vector, before gating."""
    tim_dclf_l2: Tensor
    """Root mean square of that change."""
    tim_dseg_l1: Tensor
    """Mean absolute change that TIM proposes for the decoder map, before gating."""
    tim_dseg_l2: Tensor
    """Root mean square of that change."""

    @classmethod
    def stack(cls, levels: list[Signals]) -> Signals:
        """Per-level signals, each [B], to one [B, levels]."""
        return cls(*(torch.stack(values, dim=1) for values in zip(*levels, strict=True)))


class Supervised(NamedTuple):
    """One pair of heads that the losses are taken of."""

    seg_logits: Tensor | None
    """[B, 1, S, S]: a method upsamples its coarser maps to the masks' size."""
    clf_logits: Tensor | None
    """[B, K]"""
    weight: float
    """Of its losses in each task's sum."""


class Output(NamedTuple):
    """A forward pass."""

    seg_logits: Tensor
    """[B, 1, S, S]"""
    clf_logits: Tensor | None
    """[B, K]; None for segmentation-only methods."""
    signals: Signals | None
    """None for methods (and ablations) without UPA."""
    heads: tuple[Supervised, ...] = ()
    """Deep supervision: the heads that are trained, in place of the prediction above (which is among them where the
    method trains it). Empty where only the prediction is, as in BTI-Net, and in evaluation where they cost extra."""

    penalty: Tensor | None = None
    """A loss of the method's own, a scalar that is added to those of the tasks in training."""

    def float(self) -> Output:
        """The same in float32."""
        converted: Output = tree_map(lambda value: value.float() if torch.is_tensor(value) else value, self)
        return converted

    def supervised(self) -> tuple[Supervised, ...]:
        """What the losses are taken of."""
        return self.heads or (Supervised(self.seg_logits, self.clf_logits, 1.0),)

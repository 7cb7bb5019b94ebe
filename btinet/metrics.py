"""Per-sample quality of a prediction, and the validation summary that selects a model.

A mask is foreground where p >= 0.5. IoU, Dice, precision and recall are per image and 0 where they are 0/0 (notes
B46); summaries of IoU take only the images that have a lesion (B19).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Overlap(NamedTuple):
    """Pixel counts per sample, each [B] int64."""

    tp: Tensor
    fp: Tensor
    fn: Tensor

    @property
    def iou(self) -> Tensor:
        """TP / (TP + FP + FN), [B] in [0, 1]."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def dice(self) -> Tensor:
        """2 TP / (2 TP + FP + FN), [B] in [0, 1]."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def precision(self) -> Tensor:
        """TP / (TP + FP), [B] in [0, 1]."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> Tensor:
        """TP / (TP + FN), [B] in [0, 1]."""
        return _ratio(self.tp, self.tp + self.fn)


def overlap(prediction: Tensor, truth: Tensor) -> Overlap:
    """Count pixels of boolean masks [B, 1, S, S]."""

    def count(mask: Tensor) -> Tensor:
        return mask.sum((1, 2, 3))

    return Overlap(count(prediction & truth), count(prediction & ~truth), count(~prediction & truth))


def foreground(logits: Tensor) -> Tensor:
    """Logits [B, 1, S, S] -> boolean mask, p >= 0.5."""
    return logits >= 0


def entropy(p: Tensor, dim: int = 1) -> Tensor:
    """Shannon entropy in nats of probabilities along ``dim``."""
    return torch.special.entr(p).sum(dim)


def binary_entropy(p: Tensor) -> Tensor:
    """Shannon entropy in nats of a Bernoulli with probability p, element by element."""
    return torch.special.entr(p) + torch.special.entr(1 - p)


def mask_confidence(p: Tensor) -> Tensor:
    """Soft Dice of probability maps [B, ...] with their own masks (p >= 0.5), [B] in [0, 1].

    The expected Dice if the map is calibrated (Borges et al. 2025, Soft Dice Confidence); where the mask is empty,
    one less the largest probability.
    """
    p = p.flatten(1)
    mask = (p >= 0.5).to(p.dtype)
    area = mask.sum(1)
    dice = 2 * (p * mask).sum(1) / (p.sum(1) + area)
    return torch.where(area > 0, dice, 1 - p.amax(1))


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return numerator / denominator.clamp_min(1)

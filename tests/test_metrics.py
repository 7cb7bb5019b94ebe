"""Metrics by hand, and against torchmetrics, scikit-learn and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score
from torch import Tensor

import btinet.torchvision_compat  # noqa: F401  isort: skip  (must come before torchmetrics)
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex, BinaryPrecision, BinaryRecall

from btinet.metrics import binary_entropy, entropy, foreground, mask_confidence, overlap


def mask(*pixels: int) -> Tensor:
    return torch.tensor(pixels, dtype=torch.bool).view(1, 1, 2, 2)


@pytest.mark.parametrize(
    ("prediction", "truth", "counts", "iou", "dice", "precision", "recall"),
    [
        (mask(1, 1, 0, 0), mask(1, 1, 0, 0), (2, 0, 0), 1, 1, 1, 1),
        (mask(1, 1, 0, 0), mask(1, 0, 1, 0), (1, 1, 1), 1 / 3, 1 / 2, 1 / 2, 1 / 2),
        (mask(1, 1, 1, 1), mask(1, 0, 0, 0), (1, 3, 0), 1 / 4, 2 / 5, 1 / 4, 1),
        (mask(1, 0, 0, 0), mask(1, 1, 1, 0), (1, 0, 2), 1 / 3, 1 / 2, 1, 1 / 3),
        (mask(1, 0, 0, 0), mask(0, 1, 0, 0), (0, 1, 1), 0, 0, 0, 0),
        (mask(0, 0, 0, 0), mask(1, 1, 0, 0), (0, 0, 2), 0, 0, 0, 0),  # precision 0/0
        (mask(1, 1, 1, 0), mask(0, 0, 0, 0), (0, 3, 0), 0, 0, 0, 0),  # recall 0/0
        (mask(0, 0, 0, 0), mask(0, 0, 0, 0), (0, 0, 0), 0, 0, 0, 0),  # all 0/0
    ],
)
def test_by_hand(
    prediction: Tensor,
    truth: Tensor,
    counts: tuple[int, int, int],
    iou: float,
    dice: float,
    precision: float,
    recall: float,
) -> None:
    result = overlap(prediction, truth)
    assert tuple(count.item() for count in result) == counts
    assert all(count.dtype == torch.int64 for count in result)
    assert result.iou.tolist() == pytest.approx([iou])
    assert result.dice.tolist() == pytest.approx([dice])
    assert result.precision.tolist() == pytest.approx([precision])
    assert result.recall.tolist() == pytest.approx([recall])


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ((1, 1, 0, 0), 1),
        ((0.9, 0.6, 0.2, 0.1), 2 * 1.5 / (1.8 + 2)),
        ((0.5, 0.4, 0.4, 0.4), 2 * 0.5 / (1.7 + 1)),
        ((0.3, 0.2, 0, 0), 0.7),  # empty: the less it comes near to marking anything
        ((0, 0, 0, 0), 1),
    ],
)
def test_mask_confidence(p: tuple[float, ...], expected: float) -> None:
    maps = torch.tensor([p, (1, 1, 1, 1)]).view(2, 1, 2, 2)
    assert mask_confidence(maps).tolist() == pytest.approx([expected, 1])


@pytest.fixture(scope="module")
def masks() -> tuple[Tensor, Tensor]:
    """Predictions and truths of varying density, among them empty and full ones."""
    generator = torch.Generator().manual_seed(0)
    density = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])[:, None, None, None]
    pair = torch.rand(2, 25, 1, 12, 12, generator=generator)
    return pair[0] < density.repeat_interleave(5, 0), pair[1] < density.repeat(5, 1, 1, 1)


def test_per_image_values_are_torchmetrics(masks: tuple[Tensor, Tensor]) -> None:
    result = overlap(*masks)
    peers = {
        "iou": BinaryJaccardIndex(),
        "dice": BinaryF1Score(),
        "precision": BinaryPrecision(),
        "recall": BinaryRecall(),
    }
    for name, peer in peers.items():
        expected = [peer(p.int(), t.int()).item() for p, t in zip(*masks, strict=True)]
        assert getattr(result, name).tolist() == pytest.approx(expected), name


def test_per_image_values_are_scikit_learns(masks: tuple[Tensor, Tensor]) -> None:
    result = overlap(*masks)
    peers = {"iou": jaccard_score, "dice": f1_score, "precision": precision_score, "recall": recall_score}
    for name, peer in peers.items():
        expected = [
            peer(t.flatten().numpy(), p.flatten().numpy(), zero_division=0) for p, t in zip(*masks, strict=True)
        ]
        assert getattr(result, name).tolist() == pytest.approx(expected), name


def test_foreground_is_where_p_is_at_least_one_half() -> None:
    logits = torch.tensor([-1e4, -1.0, -1e-6, -0.0, 0.0, 1e-6, 1e4])
    assert foreground(logits).tolist() == [False, False, False, True, True, True, True]
    assert torch.equal(foreground(logits.double()), torch.sigmoid(logits.double()) >= 0.5)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([1, 0, 0], 0),
        ([0.5, 0.5, 0], math.log(2)),
        ([0.25] * 4, math.log(4)),
        ([0.5, 0.25, 0.25], 1.5 * math.log(2)),
    ],
)
def test_entropy_by_hand(p: list[float], expected: float) -> None:
    assert entropy(torch.tensor([p])).tolist() == pytest.approx([expected])


def test_entropy_is_scipys() -> None:
    p = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0)).double().softmax(1)
    np.testing.assert_allclose(entropy(p), scipy_entropy(p.numpy(), axis=1))
    p = p.transpose(1, 2)
    np.testing.assert_allclose(entropy(p, dim=2), scipy_entropy(p.numpy(), axis=2))


def test_binary_entropy_is_scipys_of_two_outcomes() -> None:
    p = torch.tensor([0, 1e-6, 0.1, 0.5, 0.9, 1], dtype=torch.float64)
    expected = scipy_entropy(np.stack([p, 1 - p]), axis=0)
    np.testing.assert_allclose(binary_entropy(p), expected, atol=1e-12)
    assert binary_entropy(p).max().item() == pytest.approx(math.log(2))

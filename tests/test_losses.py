"""Each loss against NumPy, by hand on 2x2 masks, and at the extremes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.signal import correlate2d
from torch import Tensor
from torch.nn import functional as F

from btinet.config import LossSettings
from btinet.losses import (
    boundary_loss,
    curvature_kernel,
    difficulty,
    focal_cross_entropy,
    focal_tversky,
    gate_loss,
    segmentation_losses,
    soft_iou,
    texture_loss,
)
from btinet.ranks import Ranks

Array = NDArray[np.float64]
SETTINGS = LossSettings()
SOBEL_X = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])


def maps(*rows: list[list[float]]) -> Tensor:
    """One [1, H, W] map a sample."""
    return torch.tensor(rows, dtype=torch.float64)[:, None]


def random_maps(seed: int = 0, batch: int = 4, size: int = 9) -> tuple[Tensor, Tensor]:
    """Probabilities and masks, the last mask empty."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(batch, 1, size, size, generator=generator).double()
    y = (torch.rand(batch, 1, size, size, generator=generator) < 0.4).double()
    y[-1] = 0
    return p, y


def filtered(image: Array, kernel: Array) -> Array:
    result: Array = correlate2d(image, kernel, mode="same")
    return result


class TestTversky:
    @pytest.mark.parametrize(
        ("p", "y", "index"),
        [
            # TP, FN, FP = 0.5, 0.5, 1.5
            ([[0.5, 0.5], [0.5, 0.5]], [[1, 0], [0, 0]], 1.5 / (0.5 + 0.35 + 0.45 + 1)),
            # 0, 1, 3: all wrong
            ([[0, 1], [1, 1]], [[1, 0], [0, 0]], 1 / (0.7 + 0.9 + 1)),
            # 0, 2, 0 and 2, 0, 2: a missed pixel costs more than a false one
            ([[0, 0], [0, 0]], [[1, 1], [0, 0]], 1 / (1.4 + 1)),
            ([[1, 1], [1, 1]], [[1, 1], [0, 0]], 3 / (2 + 0.6 + 1)),
            # an empty mask: 0, 0, 2
            ([[0.5, 0.5], [0.5, 0.5]], [[0, 0], [0, 0]], 1 / (0.6 + 1)),
        ],
    )
    def test_by_hand(self, p: list[list[float]], y: list[list[float]], index: float) -> None:
        expected = (1 - index) ** 0.75
        settings = LossSettings(tversky_fn=0.7, tversky_fp=0.3)
        assert focal_tversky(maps(p), maps(y), settings).item() == pytest.approx(expected)

    def test_is_the_mean_over_images(self) -> None:
        p, y = random_maps()
        each = []
        for probability, mask in zip(p.numpy(), y.numpy(), strict=True):
            tp, fn = (probability * mask).sum(), ((1 - probability) * mask).sum()
            fp = (probability * (1 - mask)).sum()
            each.append((1 - (tp + 2) / (tp + 0.6 * fn + 0.4 * fp + 2)) ** 1.3)
        settings = LossSettings(tversky_fn=0.6, tversky_fp=0.4, tversky_gamma=1.3, tversky_smooth=2)
        assert focal_tversky(p, y, settings).item() == pytest.approx(np.mean(each))

    def test_an_empty_mask_pulls_every_probability_down(self) -> None:
        p = torch.full((1, 1, 8, 8), 0.3, requires_grad=True)
        focal_tversky(p, torch.zeros(1, 1, 8, 8), SETTINGS).backward()
        assert torch.isfinite(p.grad).all()
        assert p.grad.min() > 1e-4

    def test_a_perfect_prediction_is_near_zero_with_finite_gradient(self) -> None:
        y = maps([[1, 0], [0, 0]], [[0, 0], [0, 0]])
        p = y.clone().requires_grad_()
        loss = focal_tversky(p, y, SETTINGS)
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-5)
        assert torch.isfinite(p.grad).all()


class TestBoundary:
    def test_kernel_by_hand(self) -> None:
        a, b, c = math.exp(-0.5), math.exp(-2), math.exp(-2.5)  # at x^2 + y^2 = 1, 4, 5
        expected = [
            [0, -3 * c, -4 * b, -3 * c, 0],
            [3 * c, 0, -a, 0, 3 * c],
            [4 * b, a, 0, a, 4 * b],
            [3 * c, 0, -a, 0, 3 * c],
            [0, -3 * c, -4 * b, -3 * c, 0],
        ]
        assert curvature_kernel(torch.device("cpu")).shape == (1, 1, 5, 5)
        np.testing.assert_allclose(curvature_kernel(torch.device("cpu"))[0, 0], expected, rtol=1e-6)

    def test_kernel_ignores_constants_and_changes_sign_when_transposed(self) -> None:
        kernel = curvature_kernel(torch.device("cpu"))[0, 0]
        assert kernel.sum().item() == pytest.approx(0, abs=1e-6)
        assert torch.equal(kernel.T, -kernel)
        assert torch.equal(kernel.flip(0), kernel)
        assert torch.equal(kernel.flip(1), kernel)

    def test_against_numpy(self) -> None:
        p, y = random_maps()
        kernel = curvature_kernel(torch.device("cpu"))[0, 0].double().numpy()
        differences = [
            np.abs(filtered(mask, kernel) - filtered(probability, kernel))
            for probability, mask in zip(p.numpy()[:, 0], y.numpy()[:, 0], strict=True)
        ]
        assert boundary_loss(p, y).item() == pytest.approx(np.mean(differences))

    def test_equal_maps_cost_nothing_and_swapped_maps_the_same(self) -> None:
        p, y = random_maps()
        assert boundary_loss(y, y).item() == 0
        assert boundary_loss(p, y).item() == pytest.approx(boundary_loss(y, p).item())


class TestTexture:
    def test_against_numpy(self) -> None:
        def spread(image: Array) -> float:
            return math.sqrt(filtered(image, SOBEL_X).var() + 1e-7)

        p, y = random_maps()
        differences = [
            abs(spread(mask) - spread(probability))
            for probability, mask in zip(p.numpy()[:, 0], y.numpy()[:, 0], strict=True)
        ]
        assert texture_loss(p, y).item() == pytest.approx(np.mean(differences))

    def test_equal_maps_cost_nothing(self) -> None:
        _, y = random_maps()
        assert texture_loss(y, y).item() == 0

    def test_reads_the_horizontal_direction_only(self) -> None:
        p = torch.zeros(1, 1, 9, 9)
        p[..., 3:6] = 1  # a vertical bar
        empty = torch.zeros_like(p)
        assert texture_loss(p, empty) > 1
        assert texture_loss(p.transpose(2, 3), empty) < 0.7 * texture_loss(p, empty)


class TestSegmentation:
    def test_weighted_sum(self) -> None:
        p, y = random_maps()
        terms = segmentation_losses(p.logit(), y, LossSettings(boundary=0.5, texture=2))
        assert set(terms) == {"tversky", "boundary", "texture", "seg"}
        assert terms["tversky"].item() == pytest.approx(focal_tversky(p, y, SETTINGS).item())
        assert terms["boundary"].item() == pytest.approx(boundary_loss(p, y).item())
        assert terms["texture"].item() == pytest.approx(texture_loss(p, y).item())
        expected = terms["tversky"] + 0.5 * terms["boundary"] + 2 * terms["texture"]
        assert terms["seg"].item() == pytest.approx(expected.item())

    @pytest.mark.parametrize("term", ["tversky", "boundary", "texture"])
    def test_every_term_is_differentiable(self, term: str) -> None:
        p, y = random_maps(batch=2, size=5)
        logits = p.logit().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: segmentation_losses(x, y, SETTINGS)[term], logits)
        (gradient,) = torch.autograd.grad(segmentation_losses(logits, y, SETTINGS)[term], logits)
        assert (gradient.abs().sum((1, 2, 3)) > 0).all()  # for the empty mask too

    def test_a_confident_right_answer_is_near_zero(self) -> None:
        _, y = random_maps()
        assert segmentation_losses(40 * (2 * y - 1), y, SETTINGS)["seg"].item() < 1e-4

    @pytest.mark.parametrize("logit", [-1e4, -100.0, 0.0, 100.0, 1e4])
    @pytest.mark.parametrize("mask", ["empty", "full", "half"])
    def test_extremes_are_finite(self, logit: float, mask: str) -> None:
        y = torch.zeros(2, 1, 8, 8)
        y[..., : {"empty": 0, "half": 4, "full": 8}[mask]] = 1
        logits = torch.full_like(y, logit, requires_grad=True)
        terms = segmentation_losses(logits, y, SETTINGS)
        terms["seg"].backward()
        assert all(torch.isfinite(term) for term in terms.values())
        assert torch.isfinite(logits.grad).all()


class TestFocalCrossEntropy:
    @pytest.mark.parametrize(
        ("logits", "label", "gamma", "expected"),
        [
            ([0.0, 0.0], 0, 2.0, 0.25 * math.log(2)),
            ([math.log(3), 0.0], 0, 2.0, 0.0625 * math.log(4 / 3)),
            ([math.log(3), 0.0], 1, 2.0, 0.5625 * math.log(4)),
            ([math.log(3), 0.0], 1, 1.0, 0.75 * math.log(4)),
            ([0.0, 0.0, math.log(2)], 2, 2.0, 0.25 * math.log(2)),
        ],
    )
    def test_by_hand(self, logits: list[float], label: int, gamma: float, expected: float) -> None:
        loss = focal_cross_entropy(torch.tensor([logits]), torch.tensor([label]), gamma)
        assert loss.item() == pytest.approx(expected)

    def test_against_numpy(self) -> None:
        torch.manual_seed(0)
        logits, labels = torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 3, 0, 1])
        e = np.exp(logits.numpy())
        p_true = (e / e.sum(1, keepdims=True))[np.arange(6), labels.numpy()]
        expected = (-((1 - p_true) ** 2) * np.log(p_true)).mean()
        assert focal_cross_entropy(logits, labels, 2.0).item() == pytest.approx(expected)

    def test_gamma_0_is_cross_entropy(self) -> None:
        torch.manual_seed(0)
        logits, labels = torch.randn(6, 4, requires_grad=True), torch.tensor([0, 1, 2, 3, 0, 1])
        ours, torchs = focal_cross_entropy(logits, labels, 0.0), F.cross_entropy(logits, labels)
        torch.testing.assert_close(ours, torchs)
        torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, torchs)))

    @pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
    @pytest.mark.parametrize("label", [0, 1])
    def test_extremes_are_finite(self, gamma: float, label: int) -> None:
        logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
        loss = focal_cross_entropy(logits, torch.tensor([label]), gamma)
        loss.backward()
        assert loss.item() == pytest.approx(2e4 * label)
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, y, _: focal_tversky(p, y, SETTINGS),
        lambda p, y, _: boundary_loss(p, y),
        lambda p, y, _: texture_loss(p, y),
        lambda p, y, labels: focal_cross_entropy(p.flatten(1)[:, :3], labels, 2.0),
    ],
    ids=["tversky", "boundary", "texture", "focal_ce"],
)
def test_the_mean_over_equal_shards_is_the_whole(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    p, y = random_maps()
    labels = torch.tensor([0, 2, 1, 0])
    halves = [loss(p[part], y[part], labels[part]) for part in (slice(2), slice(2, 4))]
    assert loss(p, y, labels).item() == pytest.approx(torch.stack(halves).mean().item())


class TestDifficulty:
    @pytest.mark.parametrize(
        ("p", "y", "expected"),
        [
            ([[1, 0], [0, 0]], [[1, 0], [0, 0]], 1.0),
            ([[0, 1], [0, 0]], [[1, 0], [0, 0]], 0.0),
            ([[0.5, 0.5], [0.5, 0.5]], [[1, 0], [0, 0]], 0.5 / (2 + 1 - 0.5)),
            ([[1, 1], [0.5, 0]], [[1, 0], [1, 0]], 1.5 / (2.5 + 2 - 1.5)),
            ([[0.5, 0], [0, 0]], [[0, 0], [0, 0]], 0.0),
            ([[0, 0], [0, 0]], [[0, 0], [0, 0]], 0.0),
        ],
    )
    def test_soft_iou(self, p: list[list[float]], y: list[list[float]], expected: float) -> None:
        assert soft_iou(maps(p), maps(y)).tolist() == pytest.approx([expected])

    @pytest.mark.parametrize(
        ("values", "targets"),
        [
            ([0.2, 0.8, 0.5], [1.0, 0.0, 0.5]),  # hardest 1, easiest 0
            ([0.9, 0.1, 0.1, 0.9, 0.3], [0.0, 1.0, 1.0, 0.0, 0.75]),  # ties
            ([0.4, 0.4, 0.4], [1.0, 1.0, 1.0]),  # no spread
            ([0.7], [1.0]),
            ([], []),
        ],
    )
    def test_targets(self, values: list[float], targets: list[float]) -> None:
        """Two more samples, which have no difficulty, make no difference."""
        counted = torch.tensor([False, *[True] * len(values), False])
        result = difficulty(torch.tensor([-3.0, *values, 5.0]), counted, Ranks())
        assert result.tolist() == pytest.approx([0, *targets, 0], abs=1e-6)
        assert all(0 <= target <= 1 for target in result.tolist())


class Batch:
    """Five samples, two of them without a lesion, and gates to judge."""

    def __init__(self, empty: tuple[int, ...] = (1, 4), classes: int = 3) -> None:
        torch.manual_seed(3)
        self.masks = (torch.rand(5, 1, 6, 6) < 0.4).float()
        self.masks[list(empty)] = 0
        self.seg_logits = torch.randn(5, 1, 6, 6, requires_grad=True)
        self.clf_logits = torch.randn(5, classes, requires_grad=True)
        self.w_seg, self.w_clf = (torch.rand(5, 4).requires_grad_() for _ in range(2))

    def loss(self, w_seg: Tensor | None = None, w_clf: Tensor | None = None) -> Tensor:
        w_seg, w_clf = self.w_seg if w_seg is None else w_seg, self.w_clf if w_clf is None else w_clf
        return gate_loss(w_seg, w_clf, self.seg_logits, self.clf_logits, self.masks, Ranks())

    def targets(self) -> tuple[Array, Array, list[int]]:
        """Eq. 17-20 in NumPy: targets of the lesions, of all for classification, and which are lesions."""
        p = 1 / (1 + np.exp(-self.seg_logits.detach().double().numpy()))
        y = self.masks.double().numpy()
        lesions = [i for i in range(5) if y[i].any()]
        iou = np.array([(p[i] * y[i]).sum() / (p[i] + y[i] - p[i] * y[i]).sum() for i in lesions])
        e = np.exp(self.clf_logits.detach().double().numpy())
        confidence = (e / e.sum(1, keepdims=True)).max(1)
        return invert(iou), invert(confidence), lesions


def invert(values: Array) -> Array:
    result: Array = 1 - (values - values.min()) / np.ptp(values)
    return result


def bce(target: float, weight: float) -> float:
    return -target * math.log(weight) - (1 - target) * math.log(1 - weight)


class TestGateLoss:
    def test_equation_21(self) -> None:
        batch = Batch()
        t_seg, t_clf, lesions = batch.targets()
        assert lesions == [0, 2, 3]
        expected = 0.0
        for level in range(4):
            seg = [bce(t, batch.w_seg[i, level].item()) for i, t in zip(lesions, t_seg, strict=True)]
            clf = [bce(t, batch.w_clf[i, level].item()) for i, t in enumerate(t_clf)]
            expected += (np.mean(seg) + np.mean(clf)) / 4
        assert batch.loss().item() == pytest.approx(expected, rel=1e-5)

    def test_samples_without_a_lesion_take_no_part_in_the_segmentation_term(self) -> None:
        batch = Batch()
        (gradient,) = torch.autograd.grad(batch.loss(), batch.w_seg)
        assert gradient[[1, 4]].abs().max() == 0
        assert (gradient[[0, 2, 3]] != 0).all()

    def test_no_gradient_reaches_the_predictions(self) -> None:
        batch = Batch()
        batch.loss().backward()
        assert batch.seg_logits.grad is None
        assert batch.clf_logits.grad is None
        assert (batch.w_clf.grad != 0).all()

    @pytest.mark.parametrize("empty", [(0, 1, 2, 3), (0, 1, 2, 3, 4)])
    def test_fewer_than_two_lesions_leave_classification_alone(self, empty: tuple[int, ...]) -> None:
        batch = Batch(empty)
        _, t_clf, _ = Batch().targets()
        loss = batch.loss()
        expected = np.mean([bce(t, w.item()) for t, row in zip(t_clf, batch.w_clf, strict=True) for w in row])
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        loss.backward()
        assert batch.w_seg.grad.tolist() == [[0] * 4] * 5
        assert (batch.w_clf.grad != 0).all()

    def test_the_minimum_is_at_the_targets(self) -> None:
        batch = Batch()
        t_seg, t_clf, lesions = batch.targets()
        best_seg, best_clf = torch.full((5, 4), 0.5), torch.tensor(t_clf).float()[:, None].repeat(1, 4)
        best_seg[lesions] = torch.tensor(t_seg).float()[:, None]
        best_seg.requires_grad_()
        best_clf.requires_grad_()
        best = batch.loss(best_seg, best_clf)
        for weights, between in ((best_seg, [i for i, t in zip(lesions, t_seg, strict=True) if 0 < t < 1]),
                                 (best_clf, [i for i, t in enumerate(t_clf) if 0 < t < 1])):  # fmt: skip
            (gradient,) = torch.autograd.grad(best, weights, retain_graph=True)
            assert between
            assert gradient[between].abs().max() < 1e-5
        for seed in range(20):
            nearby = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(seed)) * 0.1
            moved = batch.loss((best_seg + nearby[0]).clamp(0, 1), (best_clf + nearby[1]).clamp(0, 1))
            assert moved > best

    @pytest.mark.parametrize("weight", [0.0, 1.0])
    def test_saturated_gates_are_finite(self, weight: float) -> None:
        batch = Batch()
        w_seg, w_clf = (torch.full((5, 4), weight, requires_grad=True) for _ in range(2))
        loss = batch.loss(w_seg, w_clf)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(w_seg.grad).all()
        assert torch.isfinite(w_clf.grad).all()

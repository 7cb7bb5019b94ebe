"""Every metric against explicit loops over thresholds and pairs, scikit-learn and torchmetrics."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

import btinet.torchvision_compat  # noqa: F401 -- torchmetrics imports torchvision
from btinet.analysis.ranking import BINS, auroc, curves, failure_detection
from btinet.analysis.schemas import DETECTION


def metrics(failed, score, weights=None):
    """Name -> value; with weights, of the first of them."""
    failed, score = np.asarray(failed, bool), np.asarray(score, float)
    weights = np.ones((1, len(failed)), np.uint8) if weights is None else np.atleast_2d(weights).astype(np.uint8)
    values = failure_detection(failed, score[None], probability(score)[None], weights)
    return dict(zip(DETECTION, values[:, 0, 0], strict=True))


def probability(score):
    return np.clip(score, 0, 1)


def brute(failed, score):
    """The definitions, by loops."""
    n, p = len(failed), int(failed.sum())
    pairs = [(f > o) + 0.5 * (f == o) for f in score[failed] for o in score[~failed]]
    area = sum(pairs) / len(pairs)
    precision_sum = recall = 0.0
    fpr95 = None
    for threshold in sorted(set(score), reverse=True):
        flagged = score >= threshold
        now = failed[flagged].sum() / p
        precision_sum += (now - recall) * failed[flagged].mean()
        recall = now
        if fpr95 is None and now >= 0.95:
            fpr95 = (flagged & ~failed).sum() / (n - p)
    risks, generalised = [], [(0.0, 0.0)]  # the latter: (coverage, share of all samples accepted and failed)
    accepted = wrong = 0
    for threshold in sorted(set(score)):
        group = failed[score == threshold]
        risks += [(wrong + j * group.mean()) / (accepted + j) for j in range(1, len(group) + 1)]
        accepted, wrong = accepted + len(group), wrong + int(group.sum())
        generalised.append((accepted / n, wrong / n))
    perfect = [max(0, k - (n - p)) / k for k in range(1, n + 1)]
    augrc = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(generalised))
    chances = probability(score)
    bins = np.minimum(np.floor(chances * BINS), BINS - 1)
    ece = sum(
        (bins == b).sum() / n * abs(chances[bins == b].mean() - failed[bins == b].mean()) for b in sorted(set(bins))
    )
    return {
        "auroc": area,
        "auprc": precision_sum,
        "aurc": np.mean(risks),
        "e_aurc": np.mean(risks) - np.mean(perfect),
        "augrc": augrc,
        "fpr95": fpr95,
        "ece": ece,
        "brier": np.mean((chances - failed) ** 2),
    }


def drawn(seed, n=60, levels=12):
    """Failures and scores with many ties."""
    rng = np.random.default_rng(seed)
    failed = rng.random(n) < 0.3
    failed[:2] = True, False
    return failed, np.clip(rng.integers(0, levels, n) + 2 * failed, 0, levels - 1) / (levels - 1)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("levels", [2, 12, 100_000])
def test_all_metrics_equal_explicit_loops(seed, levels):
    failed, score = drawn(seed, levels=levels)
    assert metrics(failed, score) == pytest.approx(brute(failed, score), abs=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_a_weight_is_a_repetition(seed):
    failed, score = drawn(seed)
    weights = np.random.default_rng(seed).integers(0, 4, len(failed))
    weights[:2] = 1
    repeated = np.repeat(failed, weights), np.repeat(score, weights)
    assert metrics(failed, score, weights) == pytest.approx(brute(*repeated), abs=1e-12)


def test_many_resamples_at_once():
    """More than fit one block; each is what it is alone."""
    failed, score = drawn(0, n=3000, levels=500)
    weights = np.random.default_rng(0).integers(0, 3, (200, 3000)).astype(np.uint8)
    together = failure_detection(failed, score[None], probability(score)[None], weights)
    for row in (0, 87, 88, 199):
        assert dict(zip(DETECTION, together[:, 0, row], strict=True)) == pytest.approx(
            metrics(failed, score, weights[row]), abs=1e-12
        )


def test_ties_are_the_mean_over_all_orders():
    failed, score = np.array([1, 0, 0, 1, 0, 0], bool), np.array([0.2, 0.2, 0.2, 0.7, 0.7, 0.1])
    orders = [order for order in itertools.permutations(range(6)) if (np.diff(score[list(order)]) >= 0).all()]
    assert len(orders) == 6 * 2
    aurcs = [np.mean(np.cumsum(failed[list(order)]) / np.arange(1, 7)) for order in orders]
    assert metrics(failed, score)["aurc"] == pytest.approx(np.mean(aurcs))


def test_closed_forms():
    """One failure among n: ranked last by acceptance, ranked first, and in the middle."""
    n = 5
    failed = np.zeros(n, bool)
    failed[2] = True
    last, first = metrics(failed, [0.1, 0.2, 0.9, 0.3, 0.4]), metrics(failed, [0.1, 0.2, 0.0, 0.3, 0.4])
    assert (last["auroc"], last["auprc"], last["fpr95"], last["e_aurc"]) == pytest.approx((1, 1, 0, 0), abs=1e-12)
    assert last["aurc"] == pytest.approx(1 / n / n)  # all of it at full coverage
    assert last["augrc"] == pytest.approx(1 / n**2 / 2)
    assert (first["auroc"], first["auprc"], first["fpr95"]) == pytest.approx((0, 1 / n, 1))
    assert first["aurc"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / n)
    middle = metrics(failed, [0.1, 0.2, 0.25, 0.3, 0.4])
    assert (middle["auroc"], middle["auprc"], middle["fpr95"]) == pytest.approx((0.5, 1 / 3, 0.5))
    assert middle["augrc"] == pytest.approx(0.5 * (1 / n) * (4 / n) + 0.5 / n**2)


@pytest.mark.parametrize("seed", range(5))
def test_scikit_learn(seed):
    failed, score = drawn(seed, n=500, levels=50)
    found = metrics(failed, score)
    assert found["auroc"] == pytest.approx(roc_auc_score(failed, score))
    assert found["auprc"] == pytest.approx(average_precision_score(failed, score))
    assert found["brier"] == pytest.approx(brier_score_loss(failed, score))
    weights = np.random.default_rng(seed).integers(0, 4, len(failed))
    weighted = metrics(failed, score, weights)
    assert weighted["auroc"] == pytest.approx(roc_auc_score(failed, score, sample_weight=weights))
    assert weighted["auprc"] == pytest.approx(average_precision_score(failed, score, sample_weight=weights))
    assert weighted["brier"] == pytest.approx(brier_score_loss(failed, score, sample_weight=weights))


def test_torchmetrics():
    from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

    rng = np.random.default_rng(3)
    score = rng.random(400)
    failed = rng.random(400) < score**2
    found = metrics(failed, score)
    tensors = torch.tensor(score), torch.tensor(failed).long()
    assert found["ece"] == pytest.approx(float(binary_calibration_error(*tensors, n_bins=BINS, norm="l1")), abs=1e-6)
    assert found["auroc"] == pytest.approx(float(binary_auroc(*tensors)), abs=1e-6)


@pytest.mark.parametrize("failed", [[True, True], [False, False], []])
def test_one_class_is_undefined(failed):
    assert np.isnan(list(metrics(failed, np.arange(len(failed))).values())).all()
    assert np.isnan(auroc(np.asarray(failed, bool), np.arange(len(failed), dtype=float)))


def test_a_resample_of_one_class_is_undefined_and_the_others_are_not():
    failed, score = np.array([True, False, False]), np.array([[0.3, 0.2, 0.1]])
    weights = np.array([[1, 1, 1], [0, 2, 1], [3, 0, 0], [1, 0, 2]], np.uint8)
    found = failure_detection(failed, score, score, weights)[:, 0]
    assert np.isnan(found[:, 1:3]).all()
    assert np.isfinite(found[:, [0, 3]]).all()


@pytest.mark.parametrize("levels", [2, 12, 100_000])
def test_curves(levels):
    failed, score = drawn(7, n=200, levels=levels)
    found = curves(failed, score)
    fpr, tpr = found["roc"]
    assert np.trapezoid(tpr, fpr) == pytest.approx(roc_auc_score(failed, score))
    theirs = roc_curve(failed, score, drop_intermediate=True)
    assert len(fpr) <= len(theirs[0])
    assert np.interp(theirs[0], fpr, tpr).max() == 1
    precision, recall, _ = precision_recall_curve(failed, score)
    assert found["pr"][0] == pytest.approx(recall[-2::-1])
    assert found["pr"][1] == pytest.approx(precision[-2::-1])
    coverage, risk = found["risk_coverage"]
    assert coverage == pytest.approx([(score <= threshold).mean() for threshold in sorted(set(score))])
    assert risk == pytest.approx([failed[score <= threshold].mean() for threshold in sorted(set(score))])

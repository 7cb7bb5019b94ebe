"""How well a score finds failures, for many resamples at once (docs/metrics.md has the definitions).

A failure is the positive class, and a higher score should mean failure. Equal scores are handled exactly: what depends
on an order among them is the mean over all orders. A resample is a weight per sample; giving a sample the weight k is
the same as repeating it k times.

Every metric is a sum over the groups of equal scores that hold a failure. With samples accepted by ascending score, N
and F accepted samples and failures before a group, dN and dF those in it, P failures and S others in all:

* AUROC = sum dF (N - F + (dN - dF) / 2) / (P S)
* AUPRC (average precision) = sum dF / P * (P - F) / (P + S - N)
* AURC = sum dF (H(P + S) - H(N + dN) + 1 - N / dN (H(N + dN) - H(N))) / (P + S), where H(k) = 1 + 1/2 + ... + 1/k: the
  mean, over the numbers 1..P + S of accepted samples, of the share of failures among them
* AUGRC = (1 - AUROC) P S / (P + S)^2 + (P / (P + S))^2 / 2

so that a score is sorted once, and a resample costs one cumulative sum of weights.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from btinet.analysis.resampling import Floats, Weights, blocks
from btinet.analysis.schemas import DETECTION

BINS = 15
"""Of equal width, for the expected calibration error (paper notes B25)."""
RECALL = 0.95
"""Share of the failures that FPR@95TPR asks for."""


class _Ranked(NamedTuple):
    """A score's order, and its groups of equal scores that hold failures."""

    order: NDArray[np.intp]
    """Samples by ascending score."""
    start: NDArray[np.intp]
    """Place in ``order`` of each group's first sample."""
    stop: NDArray[np.intp]
    """One past each group's last."""
    failures: NDArray[np.intp]
    """Failed samples by ascending score."""
    failures_stop: NDArray[np.intp]
    """One past each group's last in ``failures``."""


def failure_detection(failed: NDArray[np.bool_], scores: Floats, probabilities: Floats, weights: Weights) -> Floats:
    """Every metric of :data:`btinet.analysis.schemas.DETECTION`, [len(DETECTION), k, m].

    Args:
        failed: [n].
        scores: k scores [k, n], finite.
        probabilities: each score as a probability of failure, in [0, 1], [k, n]: what ECE and the Brier score judge.
        weights: [m, n].

    Returns:
        NaN in resamples without failures, or with nothing else.
    """
    result = np.full((len(DETECTION), len(scores), len(weights)), np.nan)
    if not failed.any():
        return result
    ranked = [_rank(failed, score) for score in scores]
    errors = probabilities - failed
    binned = [_binned(*pair) for pair in zip(probabilities, errors, strict=True)]
    for rows in blocks(weights):
        drawn = weights[rows]
        total = drawn.sum(1, dtype=np.int64)
        failures = drawn[:, failed].sum(1, dtype=np.int64)
        harmonic = _harmonic(int(total.max()))
        floats = drawn.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            for index, score in enumerate(ranked):
                result[:6, index, rows] = _rank_metrics(score, drawn, total, failures, harmonic)
                result[6, index, rows] = np.abs(floats @ binned[index]).sum(1) / total
            result[7, :, rows] = (errors**2 @ floats.T) / total
        undefined = (failures == 0) | (failures == total)
        result[:, :, rows][..., undefined] = np.nan
    return result


def auroc(failed: NDArray[np.bool_], score: Floats) -> float:
    """Area under the ROC curve; ties count 1/2. NaN with one class only."""
    ones = np.ones((1, len(failed)), np.uint8)
    zeros = np.zeros((1, len(failed)))
    return float(failure_detection(failed, score[None], zeros, ones)[0, 0, 0])


def curves(failed: NDArray[np.bool_], score: Floats) -> dict[str, tuple[Floats, Floats]]:
    """Name of a curve -> (x, y), a point for each distinct threshold of the score; both classes must be there.

    ``roc``: FPR and TPR, without points on a line between others; ``pr``: recall and precision; from flagging nothing
    to flagging everything. ``risk_coverage``: share of samples accepted, and of failures among them.
    """
    order = np.argsort(score, kind="stable")
    stop = np.append(np.flatnonzero(np.diff(score[order])) + 1, len(score))
    failures = np.cumsum(failed[order])[stop - 1]  # among the accepted
    found = failures[-1] - np.append(failures[-2::-1], 0)  # among the flagged, from the highest threshold on
    flagged = len(score) - np.append(stop[-2::-1], 0)
    fpr = np.append(0, flagged - found) / (len(score) - failures[-1])
    tpr = np.append(0, found) / failures[-1]
    corner = np.concatenate([[True], np.abs(np.diff(fpr, 2)) + np.abs(np.diff(tpr, 2)) > 1e-12, [True]])
    return {
        "roc": (fpr[corner], tpr[corner]),
        "pr": (found / failures[-1], found / flagged),
        "risk_coverage": (stop / len(score), failures / stop),
    }


def _rank(failed: NDArray[np.bool_], score: Floats) -> _Ranked:
    order = np.argsort(score, kind="stable")
    first = np.flatnonzero(np.append(True, np.diff(score[order]) > 0))
    stop = np.append(first[1:], len(score))
    upto = np.append(0, np.cumsum(failed[order]))
    has_failure = upto[stop] > upto[first]
    return _Ranked(
        order, first[has_failure], stop[has_failure], order[failed[order]], upto[stop[has_failure]].astype(np.intp)
    )


def _rank_metrics(
    ranked: _Ranked,
    drawn: Weights,
    total: NDArray[np.int64],
    failures: NDArray[np.int64],
    harmonic: Floats,
) -> Floats:
    """AUROC, AUPRC, AURC, E-AURC, AUGRC and FPR@95TPR, [6, b], of weights [b, n]."""
    accepted = _cumulative(drawn, ranked.order)
    before, upto = accepted[:, ranked.start], accepted[:, ranked.stop]  # N and N + dN, [b, groups]
    failed_upto = _cumulative(drawn, ranked.failures)[:, ranked.failures_stop]  # F + dF
    failed_before = np.zeros_like(failed_upto)
    failed_before[:, 1:] = failed_upto[:, :-1]
    in_group = upto - before
    failed_in_group = failed_upto - failed_before
    others = total - failures
    below = (before - failed_before) + (in_group - failed_in_group) / 2
    auroc = (failed_in_group * below).sum(1) / (failures * others)
    precision = (failures[:, None] - failed_before) / np.maximum(total[:, None] - before, 1)
    auprc = (failed_in_group * precision).sum(1) / failures
    at_start, at_stop = harmonic[before], harmonic[upto]
    within = before / np.maximum(in_group, 1) * (at_stop - at_start)
    aurc = (failed_in_group * (harmonic[total][:, None] - at_stop + 1 - within)).sum(1) / total
    perfect = (failures - others * (harmonic[total] - harmonic[others])) / total
    augrc = (1 - auroc) * failures * others / total**2 + (failures / total) ** 2 / 2
    missable = failures - np.ceil(RECALL * failures - 1e-9).astype(np.int64)
    threshold = (failed_before <= missable[:, None]).sum(1) - 1  # the highest group from which enough are found
    row = np.arange(len(drawn))
    fpr95 = 1 - (before - failed_before)[row, threshold] / others
    return np.stack([auroc, auprc, aurc, aurc - perfect, augrc, fpr95])


def _cumulative(drawn: Weights, order: NDArray[np.intp]) -> NDArray[np.int32]:
    """[b, len(order) + 1]: weight of the first 0, 1, ... samples in this order."""
    sums = np.zeros((len(drawn), len(order) + 1), np.int32)
    np.cumsum(drawn[:, order], axis=1, out=sums[:, 1:])
    return sums


def _binned(probability: Floats, error: Floats) -> Floats:
    """[n, BINS]: each sample's error in the column of its bin, so that weights @ it sums the errors by bin."""
    table = np.zeros((len(error), BINS))
    table[np.arange(len(error)), np.minimum((probability * BINS).astype(int), BINS - 1)] = error
    return table


def _harmonic(count: int) -> Floats:
    """H(0), H(1), ..., H(count)."""
    return np.append(0.0, np.cumsum(1 / np.arange(1, count + 1)))

"""Tests: paired AUROCs, rank correlation, two means, several hypotheses (sources: docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from btinet.analysis.resampling import Floats, Weights, blocks


def delong(failed: NDArray[np.bool_], scores: Floats, clusters: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """AUROCs [k] of scores [k, n] on the same samples, and their covariance [k, k].

    DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988), by midranks as Sun and Xu (IEEE Signal Processing Letters
    21, 2014); where several samples share a cluster, Obuchowski's extension (Biometrics 53, 1997), which without such
    samples is the same. NaN below two clusters with failures or two with others.

    Args:
        failed: [n], with at least one of each.
        clusters: [n], a number per cluster.
    """
    positives, negatives = scores[:, failed], scores[:, ~failed]
    m, n = positives.shape[1], negatives.shape[1]
    ranks = stats.rankdata(np.concatenate([positives, negatives], axis=1), axis=1)
    of_positives = (ranks[:, :m] - stats.rankdata(positives, axis=1)) / n  # V10: how many others each failure exceeds
    of_negatives = 1 - (ranks[:, m:] - stats.rankdata(negatives, axis=1)) / m  # V01
    aurocs = of_positives.mean(1)
    count = int(clusters.max()) + 1
    excess = [
        _by_cluster(values - aurocs[:, None], clusters[chosen], count)
        for values, chosen in ((of_positives, failed), (of_negatives, ~failed))
    ]
    used = [len(np.unique(clusters[chosen])) for chosen in (failed, ~failed)]
    if min(used) < 2:
        return aurocs, np.full((len(scores), len(scores)), np.nan)
    all_used = len(np.unique(clusters))
    s10, s01 = (part @ part.T * size / (size - 1) / of for part, size, of in zip(excess, used, (m, n), strict=True))
    s11 = excess[0] @ excess[1].T * all_used / (all_used - 1)
    return aurocs, s10 / m + s01 / n + (s11 + s11.T) / (m * n)


def difference_test(aurocs: Floats, covariance: Floats, a: int, b: int) -> tuple[float, float]:
    """z and two-sided p of AUROC a = AUROC b; NaN where the difference has no variance."""
    variance = covariance[a, a] + covariance[b, b] - 2 * covariance[a, b]
    if not variance > 1e-15:
        return float("nan"), float("nan")
    z = float((aurocs[a] - aurocs[b]) / np.sqrt(variance))
    return z, float(2 * stats.norm.sf(abs(z)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979) of those that are there."""
    places = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(places):
        highest = max(highest, min(1.0, p * (len(places) - rank)))
        corrected[i] = highest
    return corrected


def spearman(variables: dict[str, Floats], pairs: Sequence[tuple[str, str]], weights: Weights) -> Floats:
    """Spearman's rho of each pair of variables [n] in every resample, [len(pairs), m]; NaN where one is constant.

    Pearson's correlation of the ranks, equal values sharing their mean rank; a sample of weight k counts as k samples.
    """
    result = np.full((len(pairs), len(weights)), np.nan)
    used = {name: _Groups(variables[name]) for name in dict.fromkeys(name for pair in pairs for name in pair)}
    for rows in blocks(weights):
        drawn = weights[rows].astype(np.float64)
        centre = (drawn.sum(1, keepdims=True) + 1) / 2
        ranks = {name: groups.ranks(weights[rows]) - centre for name, groups in used.items()}
        spread = {name: np.einsum("bn,bn,bn->b", drawn, rank, rank, optimize=True) for name, rank in ranks.items()}
        weighted = {name: drawn * ranks[name] for name, _ in pairs}
        for index, (x, y) in enumerate(pairs):
            product = np.einsum("bn,bn->b", weighted[x], ranks[y])
            scale = np.sqrt(spread[x] * spread[y])
            result[index, rows] = np.where(scale > 0, product / np.where(scale > 0, scale, 1), np.nan)
    return result


def spearman_p(rho: float, n: int) -> float:
    """Two-sided p of rho = 0, by Student's t with n - 2 degrees of freedom, as the paper's ticks have it."""
    if n < 3 or np.isnan(rho):
        return float("nan")
    if abs(rho) >= 1:
        return 0.0
    return float(2 * stats.t.sf(abs(rho) * np.sqrt((n - 2) / (1 - rho**2)), n - 2))


def pooled_t(a: Floats, b: Floats) -> tuple[float, float]:
    """Student's t and two-sided p of equal means with pooled variance (paper notes B34); NaN where undefined."""
    freedom = len(a) + len(b) - 2
    if min(len(a), len(b)) < 1 or freedom < 1:
        return float("nan"), float("nan")
    pooled = (((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()) / freedom
    if not pooled > 0:
        return float("nan"), float("nan")
    t = float((a.mean() - b.mean()) / np.sqrt(pooled * (1 / len(a) + 1 / len(b))))
    return t, float(2 * stats.t.sf(abs(t), freedom))


class _Groups:
    """A variable's groups of equal values."""

    def __init__(self, values: Floats) -> None:
        self.order = np.argsort(values, kind="stable")
        change = np.diff(values[self.order]) > 0
        self.bounds = np.flatnonzero(np.concatenate([[True], change, [True]]))
        self.group = np.empty(len(values), np.intp)
        self.group[self.order] = np.append(0, np.cumsum(change))

    def ranks(self, weights: Weights) -> Floats:
        """Mean rank of each sample's copies, [b, n]."""
        sums = np.zeros((len(weights), len(self.order) + 1), np.int32)
        np.cumsum(weights[:, self.order], axis=1, out=sums[:, 1:])
        ends = sums[:, self.bounds]
        middle: Floats = (ends[:, :-1] + ends[:, 1:] + 1) / 2
        return middle[:, self.group]


def _by_cluster(values: Floats, clusters: NDArray[np.integer], count: int) -> Floats:
    """Sums [k, count] of values [k, n] within each cluster."""
    return np.stack([np.bincount(clusters, row, count) for row in values])

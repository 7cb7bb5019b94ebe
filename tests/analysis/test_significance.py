"""Tests of hypotheses against SciPy and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from btinet.analysis.resampling import no_weights
from btinet.analysis.significance import delong, difference_test, holm, pooled_t, spearman, spearman_p


def drawn(seed, n=40):
    rng = np.random.default_rng(seed)
    failed = rng.random(n) < 0.4
    failed[:4] = True, True, False, False
    base = rng.normal(size=n) + failed
    scores = np.stack([base, base + rng.normal(size=n), np.round(rng.normal(size=n) + failed)])  # the last with ties
    return failed, scores


def placements(failed, score):
    """V10 and V01 of DeLong et al. by comparing every failure with every other."""
    kernel = (score[failed][:, None] > score[~failed]) + 0.5 * (score[failed][:, None] == score[~failed])
    return kernel.mean(1), kernel.mean(0)


@pytest.mark.parametrize("seed", range(5))
def test_delong_equals_brute_force(seed):
    failed, scores = drawn(seed)
    aurocs, covariance = delong(failed, scores, np.arange(len(failed)))
    parts = [placements(failed, score) for score in scores]
    v10, v01 = (np.stack([part[i] for part in parts]) for i in (0, 1))
    assert aurocs == pytest.approx(v10.mean(1))
    assert covariance == pytest.approx(np.cov(v10) / failed.sum() + np.cov(v01) / (~failed).sum())


@pytest.mark.parametrize("seed", range(5))
def test_clustered_delong_equals_brute_force(seed):
    """Obuchowski's formula, loop by loop."""
    failed, scores = drawn(seed)
    clusters = np.arange(len(failed)) // 3  # hold both failures and others
    aurocs, covariance = delong(failed, scores, clusters)
    m, n = failed.sum(), (~failed).sum()
    parts = [placements(failed, score) for score in scores]
    expected = np.zeros((3, 3))
    with_failures, with_others = set(clusters[failed]), set(clusters[~failed])
    for a in range(3):
        for b in range(3):
            s10 = s01 = s11 = s11_swapped = 0.0
            for cluster in set(clusters):
                x = [(parts[k][0][clusters[failed] == cluster] - aurocs[k]).sum() for k in (a, b)]
                y = [(parts[k][1][clusters[~failed] == cluster] - aurocs[k]).sum() for k in (a, b)]
                s10, s01 = s10 + x[0] * x[1], s01 + y[0] * y[1]
                s11, s11_swapped = s11 + x[0] * y[1], s11_swapped + x[1] * y[0]
            i10, i01, i = len(with_failures), len(with_others), len(set(clusters))
            expected[a, b] = s10 * i10 / ((i10 - 1) * m) / m + s01 * i01 / ((i01 - 1) * n) / n
            expected[a, b] += (s11 + s11_swapped) * i / (i - 1) / (m * n)
    assert covariance == pytest.approx(expected)


def test_delong_z_is_that_of_a_simulation():
    """The variance of AUROC differences over many draws is the one estimated from each."""
    rng = np.random.default_rng(0)
    differences, variances = [], []
    for _ in range(400):
        failed = np.arange(120) < 40
        shared = rng.normal(size=120)
        scores = np.stack([shared + 0.8 * failed, shared + rng.normal(size=120) + failed])
        aurocs, covariance = delong(failed, scores, np.arange(120))
        differences.append(aurocs[0] - aurocs[1])
        variances.append(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert np.mean(variances) == pytest.approx(np.var(differences), rel=0.2)


def test_difference_test():
    failed, scores = drawn(1)
    aurocs, covariance = delong(failed, scores, np.arange(len(failed)))
    z, p = difference_test(aurocs, covariance, 0, 1)
    deviation = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert z == pytest.approx((aurocs[0] - aurocs[1]) / deviation)
    assert p == pytest.approx(2 * (1 - stats.norm.cdf(abs(z))))
    same = delong(failed, scores[[0, 0]], np.arange(len(failed)))
    assert np.isnan(difference_test(*same, 0, 1)).all()


def test_delong_of_one_cluster_is_undefined():
    failed, scores = drawn(1)
    assert np.isnan(delong(failed, scores, np.zeros(len(failed), int))[1]).all()


def test_holm():
    """Holm's own way of telling it: the smallest of k is compared with alpha / k, and so on until one is larger."""
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert holm([]) == []
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.random(6) ** 3
        corrected = np.array(holm(list(p)))
        for alpha in (0.01, 0.05, 0.2):
            rejected = 0
            while rejected < 6 and np.sort(p)[rejected] <= alpha / (6 - rejected):
                rejected += 1
            assert (corrected <= alpha).sum() == rejected


@pytest.mark.parametrize("seed", range(4))
def test_spearman_is_scipys(seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 9, 50).astype(float)
    y = x + rng.normal(size=50) * 4
    expected = stats.spearmanr(x, y)
    ((rho,),) = spearman({"x": x, "y": y}, [("x", "y")], no_weights(50))
    assert rho == pytest.approx(expected.statistic)
    assert spearman_p(rho, 50) == pytest.approx(expected.pvalue)
    weights = rng.integers(0, 4, (3, 50)).astype(np.uint8)
    for found, weight in zip(spearman({"x": x, "y": y}, [("x", "y")], weights)[0], weights, strict=True):
        assert found == pytest.approx(stats.spearmanr(np.repeat(x, weight), np.repeat(y, weight)).statistic)


def test_spearman_of_a_constant_is_undefined():
    x = np.arange(4.0)
    weights = np.array([[1, 1, 1, 1], [4, 0, 0, 0]], np.uint8)
    found = spearman({"x": x, "y": -x}, [("x", "y")], weights)[0]
    assert found[0] == pytest.approx(-1)
    assert np.isnan(found[1])


def test_pooled_t_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=14), rng.normal(0.3, 2, size=90)
    expected = stats.ttest_ind(a, b, equal_var=True)
    assert pooled_t(a, b) == pytest.approx((expected.statistic, expected.pvalue))
    assert np.isnan(pooled_t(a, b[:0])).all()
    assert np.isnan(pooled_t(np.ones(3), np.ones(3))).all()


@pytest.mark.parametrize(
    ("t", "n", "p"),
    [(-3.29, 14 + 846, 0.001), (-2.48, 14 + 846, 0.014), (-1.75, 331 + 1160, 0.080), (-0.52, 117, 0.602)],
)
def test_the_papers_p_values_are_of_the_pooled_test(t, n, p):
    """Tables A10 and A15 and the text on BUSI, as far as the printed digits go (paper notes B34)."""
    ends = [2 * stats.t.sf(abs(t) + step, n - 2) for step in (0.005, -0.005)]
    assert ends[0] - 0.0005 <= p <= ends[1] + 0.0005


OVARIAN = """
3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1 3.8 5.7 5 1
3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0
4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1 3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1
4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1
2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1 3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1
"""
"""DeLong et al.'s own data (albumin, total protein, K-G score, outcome), as far as complete."""


def test_delong_on_the_authors_data():
    """Areas, standard errors and p as the SAS/STAT manual has them (LOGISTIC, "Comparing ROC curves")."""
    albumin, protein, score, outcome = np.array(OVARIAN.split(), float).reshape(-1, 4).T
    aurocs, covariance = delong(outcome == 0, np.stack([-albumin, -protein, score]), np.arange(43))
    assert aurocs == pytest.approx([0.7366, 0.6478, 0.7258], abs=5e-5)
    assert np.sqrt(np.diag(covariance)) == pytest.approx([0.0927, 0.1000, 0.1028], abs=5e-5)
    assert difference_test(aurocs, covariance, 0, 2)[1] == pytest.approx(0.9102, abs=5e-5)
    assert difference_test(aurocs, covariance, 1, 2)[1] == pytest.approx(0.4561, abs=5e-5)

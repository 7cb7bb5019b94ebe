"""Draws are of clusters, shared and reproducible; intervals are percentiles and cover what they should."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from btinet.analysis.ranking import failure_detection
from btinet.analysis.resampling import Resampling, intervals, over_seeds, p_value
from btinet.analysis.significance import spearman


def samples(ids, groups=None):
    groups = [None] * len(ids) if groups is None else groups
    return pa.table({"sample_id": pa.array(ids, pa.string()), "group_id": pa.array(groups, pa.string())})


def test_whole_clusters_are_drawn():
    one = samples(["a", "b", "c", "d", "e"], ["g", None, "g", "h", None])
    weights = Resampling([("busi", one)], 500).weights("busi", one)
    assert weights.shape == (501, 5)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 2]).all()  # of one group
    assert (weights[:, [0, 1, 3, 4]].sum(1) == 4).all()  # as many clusters as there are
    assert weights[1:].mean(0) == pytest.approx(1, abs=0.15)
    assert len(np.unique(weights, axis=0)) > 20


def test_a_group_and_a_sample_of_the_same_name_are_two_clusters():
    one = samples(["x", "y"], [None, "x"])
    weights = Resampling([("busi", one)], 50).weights("busi", one)
    assert (weights[1:, 0] != weights[1:, 1]).any()


def test_draws_are_shared_by_runs_on_a_dataset_and_repeatable():
    first, second = samples(["a", "b", "c"]), samples(["c", "d", "a"])
    resampling = Resampling([("busi", first), ("busi", second), ("brisc2025", first)], 100)
    assert (resampling.weights("busi", first)[:, [0, 2]] == resampling.weights("busi", second)[:, [2, 0]]).all()
    again = Resampling([("busi", second), ("busi", first)], 100)
    assert (again.weights("busi", first) == resampling.weights("busi", first)).all()


def test_no_resamples_no_intervals():
    one = samples(["a", "b"])
    weights = Resampling([("busi", one)], 0).weights("busi", one)
    assert weights.tolist() == [[1, 1]]
    assert np.isnan(intervals(np.array([0.7]))).all()


def test_one_cluster_has_no_resamples():
    one = samples(["a", "b", "c"], ["patient", "patient", "patient"])
    assert Resampling([("mine", one)], 100).weights("mine", one).tolist() == [[1, 1, 1]]


def test_intervals_are_numpys_quantiles():
    values = np.random.default_rng(0).normal(size=(3, 2, 1 + 333))
    low, high = intervals(values)
    assert low == pytest.approx(np.quantile(values[..., 1:], 0.025, axis=-1))
    assert high == pytest.approx(np.quantile(values[..., 1:], 0.975, axis=-1))


def test_undefined_resamples():
    values = np.random.default_rng(0).normal(size=(3, 201))
    values[0, 1:11] = np.nan  # 5 %: the interval is of the others
    values[1, 1:12] = np.nan  # more: none
    values[2, 0] = np.nan  # the value itself
    low, high = intervals(values)
    assert low[0] == pytest.approx(np.quantile(values[0, 11:], 0.025))
    assert high[0] == pytest.approx(np.quantile(values[0, 11:], 0.975))
    assert np.isnan([low[1:], high[1:]]).all()


def test_over_seeds():
    rng = np.random.default_rng(0)
    seeds = [rng.normal(size=(2, 4001)) + shift for shift in (0.0, 10.0)]
    seeds[1][1, 0] = np.nan  # undefined in the second seed: left out
    found = over_seeds(seeds)
    assert found[0, 0] == pytest.approx((seeds[0][0, 0] + seeds[1][0, 0]) / 2)
    assert (found[1] == seeds[0][1]).all()
    # both seeds once, or one of them twice: the mean is near 0, 5 or 10, in proportion 1:2:1
    near = [(abs(found[0, 1:] - centre) < 2.5).mean() for centre in (0, 5, 10)]
    assert near == pytest.approx([0.25, 0.5, 0.25], abs=0.05)
    assert (over_seeds(seeds[:1]) == seeds[0]).all()
    assert np.isnan(over_seeds([np.full((1, 5), np.nan)])).all()


def test_p_value():
    resampled = np.concatenate([[1.0], -np.ones(10), np.ones(89)])  # 10 of 99 are below 0
    assert p_value(resampled) == pytest.approx(2 * 11 / 100)
    assert p_value(np.ones(100)) == pytest.approx(2 / 100)
    assert p_value(np.zeros(100)) == 1


def test_the_spread_of_a_mean_is_the_textbooks():
    """sqrt(variance / n) for single samples; for clusters of four equal values twice that."""
    values = np.repeat(np.random.default_rng(0).normal(size=100), 4)
    ids = [str(i) for i in range(400)]
    for groups, expected in ((None, values.std() / 20), ([str(i // 4) for i in range(400)], values.std() / 10)):
        one = samples(ids, groups)
        weights = Resampling([("busi", one)], 2000).weights("busi", one)[1:]
        means = (weights @ values) / weights.sum(1)
        assert means.std() == pytest.approx(expected, rel=0.06)


def clustered(rng, clusters=60):
    """Failures and scores of clusters of 1 to 5 samples which share much of both."""
    sizes = rng.integers(1, 6, clusters)
    of = np.repeat(np.arange(clusters), sizes)
    difficulty = rng.normal(size=clusters)[of]
    failed = difficulty + 0.5 * rng.normal(size=len(of)) > 0.6
    return of, failed, difficulty + rng.normal(size=len(of))


@pytest.mark.slow
@pytest.mark.parametrize(("by_cluster", "lowest", "highest"), [(True, 0.91, 0.97), (False, 0.6, 0.92)])
def test_intervals_cover_the_true_auroc(by_cluster, lowest, highest):
    """95 % intervals of AUROC contain its true value about as often as they say, if and only if clusters are drawn."""
    rng = np.random.default_rng(0)
    _, failed, score = clustered(rng, 100_000)
    ones = np.ones((1, len(failed)), np.uint8)
    truth = failure_detection(failed, score[None], np.zeros((1, len(failed))), ones)[0, 0, 0]
    covered = []
    for _ in range(300):
        of, failed, score = clustered(rng)
        one = samples([str(i) for i in range(len(of))], [str(c) for c in of] if by_cluster else None)
        weights = Resampling([("x", one)], 400).weights("x", one)
        low, high = intervals(failure_detection(failed, score[None], np.zeros((1, len(of))), weights)[0, 0])
        covered.append(low <= truth <= high)
    assert lowest < np.mean(covered) < highest


@pytest.mark.slow
def test_intervals_cover_a_true_rank_correlation():
    rng = np.random.default_rng(0)
    covered = []
    truth = 6 / np.pi * np.arcsin(0.5 / 2)  # of a normal pair with correlation 0.5
    for _ in range(300):
        x = rng.normal(size=80)
        y = 0.5 * x + np.sqrt(0.75) * rng.normal(size=80)
        one = samples([str(i) for i in range(80)])
        weights = Resampling([("x", one)], 400).weights("x", one)
        low, high = intervals(spearman({"x": x, "y": y}, [("x", "y")], weights)[0])
        covered.append(low <= truth <= high)
    assert 0.91 < np.mean(covered) < 0.975

"""Correlations, delta of wrong and correct samples, TIM's magnitudes: by hand and against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests.analysis.rows import analyse, only, sample, table
from tests.analysis.test_detection import minus_delta, of, random_run, values


@pytest.fixture(scope="module")
def rows():
    return [*random_run(1), *random_run(2)]


@pytest.fixture(scope="module")
def tables(rows):
    return analyse(table(rows), 200)


def test_correlations_are_scipys(rows, tables):
    expected = []
    for seed in (1, 2):
        test = of(rows, seed, "test")
        theirs = stats.spearmanr(-minus_delta(test, 1), values(test, "iou"))
        row = only(tables["correlations_runs"], seed=seed, x="delta", y="iou", level="D2")
        assert (row["n"], row["population"]) == (len(test), "positives")
        assert (row["rho"], row["p"]) == pytest.approx((theirs.statistic, theirs.pvalue), abs=1e-6)
        assert row["rho_low"] < row["rho"] < row["rho_high"]
        assert row["marked"] == (abs(row["rho"]) > 0.3 and row["p"] < 0.05)
        expected.append(theirs.statistic)
    row = only(tables["correlations"], x="delta", y="iou", level="D2")
    assert (row["rho"], row["rho_std"]) == pytest.approx((np.mean(expected), np.std(expected, ddof=1)), abs=1e-6)
    marks = [
        found["marked"]
        for found in tables["correlations_runs"].to_pylist()
        if (found["x"], found["y"], found["level"]) == ("delta", "iou", "D2")
    ]
    assert row["seeds_marked"] == sum(marks)
    clf = only(tables["correlations_runs"], seed=1, x="delta", y="mc_entropy", level="D4")
    assert (clf["population"], clf["n"]) == ("all", 40)


def test_wrong_and_correct_delta(rows, tables):
    for population in ("all", "positives"):
        test = [row for row in rows if (row["seed"], row["split"]) == (1, "test")]
        if population == "positives":
            test = [row for row in test if row["has_mask"]]
        wrong = np.array([not row["correct"] for row in test])
        delta = -minus_delta(test, 3)
        theirs = stats.ttest_ind(delta[wrong], delta[~wrong], equal_var=True)
        row = only(tables["gate_wrong_correct_runs"], seed=1, population=population, level="D4")
        assert (row["n_wrong"], row["n_correct"]) == (wrong.sum(), (~wrong).sum())
        assert (row["mean_wrong"], row["mean_correct"]) == pytest.approx(
            (delta[wrong].mean(), delta[~wrong].mean()), abs=1e-6
        )
        assert row["difference"] == pytest.approx(row["mean_wrong"] - row["mean_correct"])
        assert (row["t"], row["p"]) == pytest.approx((theirs.statistic, theirs.pvalue), abs=1e-5)


def test_tim_magnitude_by_hand():
    """Quartiles of IoU 0.1, 0.2, 0.3, 0.4, 0.5 are 0.2 and 0.4: two samples each, ends included."""
    rows = [
        sample(i, iou=(i + 1) / 10, tim_dclf_l1=[float(i), 0, 0, 0], tim_dseg_l2=[0, 0, 0, float(i**2)])
        | {"tim_dclf_l2": [1.0] * 4, "tim_dseg_l1": [2.0] * 4}
        for i in range(5)
    ]
    rows.append(sample(9, iou=0.0, has_mask=False))
    found = analyse(table(rows), 0)["tim_magnitude"]
    where = {"direction": "seg_to_clf", "norm": "l1", "level": "D1"}
    assert only(found, **where, group="easy")["magnitude"] == pytest.approx(3.5)
    assert only(found, **where, group="hard")["magnitude"] == pytest.approx(0.5)
    assert only(found, **where, group="easy_minus_hard")["magnitude"] == pytest.approx(3)
    assert only(found, **where, group="easy")["n"] == 2
    where = {"direction": "clf_to_seg", "norm": "l2", "level": "D4"}
    assert only(found, **where, group="easy_minus_hard")["magnitude"] == pytest.approx((9 + 16) / 2 - (0 + 1) / 2)


def test_scatter_is_every_test_sample_and_level(rows, tables):
    assert len(tables["scatter"]) == 2 * 40 * 4
    row = next(row for row in rows if (row["seed"], row["split"], row["sample_id"]) == (2, "test", "test-7"))
    found = only(tables["scatter"], seed=2, sample_id="test-7", level="D3")
    assert (found["delta"], found["iou"], found["mc"]) == pytest.approx(
        (row["w_clf"][2] - row["w_seg"][2], row["iou"], row["mc_seg_var"]), abs=1e-6
    )

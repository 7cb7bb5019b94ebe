"""Populations, combinations, choices and tests of failure detection, end to end."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.analysis.rows import LEVELLED, UNSUPPORTED, analyse, as_run, only, sample, table

SEG = {"task": "seg", "population": "positives"}


def random_run(seed, n=40, **fields):
    """Val and test rows in which everything varies."""
    rng = np.random.default_rng(seed)
    rows = []
    for split in ("val", "test"):
        for i in range(n):
            iou = float(rng.random())
            row = {name: [float(v) for v in rng.random(4) + 0.3 * (iou < 0.5 and name != "w_clf")] for name in LEVELLED}
            row |= {name: [float(v) for v in rng.random(4)] for name in TIM}
            row |= {
                name: float(rng.random())
                for name in (
                    "conf",
                    "mask_conf",
                    "mc_seg_var",
                    "mc_clf_entropy",
                    "mc_clf_mi",
                    "mc_head_clf_entropy",
                    "mc_seg_var_fg",
                )
            }
            row |= {"has_mask": i % 5 > 0, "y_pred": int(rng.random() < 0.3), "group_id": f"{i // 2}"}
            rows.append(sample(i, iou=iou, split=split, **(row | fields)))
    return as_run(rows, seed=seed, run_id=f"r{seed}")


TIM = ("tim_dclf_l1", "tim_dclf_l2", "tim_dseg_l1", "tim_dseg_l2")


def values(rows, name, level=None):
    return np.array([row[name] if level is None else row[name][level] for row in rows], float)


@pytest.fixture(scope="module")
def rows():
    return [*random_run(1), *random_run(2)]


@pytest.fixture(scope="module")
def tables(rows):
    return analyse(table(rows), 300)


def of(rows, seed, split):
    return [row for row in rows if (row["seed"], row["split"]) == (seed, split) and row["has_mask"]]


def minus_delta(rows, level):
    return values(rows, "w_seg", level) - values(rows, "w_clf", level)


def test_combinations_of_delta(rows, tables):
    """Weights are the mean over seeds of what the levels' AUROCs exceed 0.5 by, on val or on test itself."""
    for split, name in (("test", "oracle"), ("val", "validation")):
        aurocs = [
            [roc_auc_score(values(part, "iou") < 0.5, minus_delta(part, level)) for level in range(4)]
            for part in (of(rows, seed, split) for seed in (1, 2))
        ]
        weights = np.maximum(np.mean(aurocs, axis=0) - 0.5, 0)
        assert weights.any()
        expected = []
        for seed in (1, 2):
            test = of(rows, seed, "test")
            score = sum(weight * minus_delta(test, level) for level, weight in enumerate(weights))
            expected.append(roc_auc_score(values(test, "iou") < 0.5, score))
        found = only(tables["detection"], **SEG, split="test", signal=f"neg_delta_weighted_{name}")
        assert found["auroc"] == pytest.approx(np.mean(expected), abs=1e-6)
        assert found["auroc_std"] == pytest.approx(np.std(expected, ddof=1), abs=1e-6)
        assert only(tables["table_a2"], detector=f"combined_{name}")["auroc"] == found["auroc"]
        assert only(tables["table_a5"], detector=f"weighted_{name}")["ece"] == found["ece"]
    test = of(rows, 1, "test")
    mean = np.mean([minus_delta(test, level) for level in range(4)], axis=0)
    found = only(tables["detection_runs"], **SEG, split="test", signal="neg_delta_mean", seed=1)
    assert found["auroc"] == pytest.approx(roc_auc_score(values(test, "iou") < 0.5, mean), abs=1e-6)


def test_head_only_dropout_is_a_score_of_its_own(rows, tables):
    test = [row for row in rows if (row["seed"], row["split"]) == (1, "test")]
    wrong = np.array([not row["correct"] for row in test])
    for signal, column in (("mc", "mc_clf_entropy"), ("mc_head", "mc_head_clf_entropy")):
        found = only(tables["detection_runs"], task="clf", population="all", split="test", seed=1, signal=signal)
        assert found["auroc"] == pytest.approx(roc_auc_score(wrong, values(test, column)), abs=1e-6)


def test_dropout_over_the_lesion_finds_an_empty_mask_most_uncertain():
    """Failures: an empty mask, and one that varies more where it calls lesion than two of the three good ones do."""
    variances = ((0.2, 0), (0.3, 0.05), (0.8, 0.01), (0.8, 0.06), (0.8, 0.02))
    found = analyse(table([sample(i, iou=iou, mc_seg_var_fg=value) for i, (iou, value) in enumerate(variances)]))
    row = only(found["detection"], **SEG, split="test", signal="mc_lesion")
    assert row["auroc"] == pytest.approx((3 + 2) / 6)
    assert only(found["table_a2"], detector="mc_lesion")["auroc"] == row["auroc"]


def test_the_masks_own_confidence_is_a_score_of_segmentation(rows, tables):
    test = of(rows, 1, "test")
    found = only(tables["detection_runs"], **SEG, split="test", seed=1, signal="one_minus_mask_conf")
    assert found["auroc"] == pytest.approx(
        roc_auc_score(values(test, "iou") < 0.5, -values(test, "mask_conf")), abs=1e-6
    )
    of_both = only(tables["detection"], **SEG, split="test", signal="one_minus_mask_conf")
    assert only(tables["table_a2"], detector="one_minus_mask_conf")["auroc"] == of_both["auroc"]
    assert {row["task"] for row in tables["detection"].to_pylist() if row["signal"] == "one_minus_mask_conf"} == {"seg"}


def test_an_empty_mask_has_no_confidence_where_there_is_a_lesion():
    """Failures: an empty mask, and one that is less sure of itself than two of the three good ones."""
    confidences = ((0.0, 1.0, True), (0.3, 0.7, False), (0.8, 0.9, False), (0.8, 0.8, False), (0.8, 0.6, False))
    found = analyse(
        table(
            [sample(i, iou=iou, mask_conf=value, empty_pred=empty) for i, (iou, value, empty) in enumerate(confidences)]
        )
    )
    row = only(found["detection"], **SEG, split="test", signal="one_minus_mask_conf")
    assert row["auroc"] == pytest.approx((3 + 2) / 6)


def test_choices_are_rows_of_the_detection_table(tables):
    detection = [row for row in tables["detection"].to_pylist() if row["task"] == "seg"]
    candidates = [row for row in detection if row["signal"] in ("neg_delta", "neg_align", "seg_energy", "w_seg")]
    for split, detector in (("test", "best_oracle"), ("val", "best_validation")):
        best = max((row for row in candidates if row["split"] == split), key=lambda row: row["auroc"])
        chosen = only(tables["table_a2"], detector=detector)
        assert (chosen["signal"], chosen["level"]) == (best["signal"], best["level"])
        (on_test,) = (
            row
            for row in candidates
            if row["split"] == "test" and row["signal"] == best["signal"] and row["level"] == best["level"]
        )
        for name in ("auroc", "auprc_low", "ece_high"):
            assert chosen[name] == on_test[name]
    level = only(tables["table_a5"], detector="best_oracle")["level"]
    assert only(tables["table_a5"], detector="best_oracle")["signal"] == "neg_delta"
    assert (
        level
        == max(
            (row for row in candidates if row["signal"] == "neg_delta" and row["split"] == "test"),
            key=lambda row: row["auroc"],
        )["level"]
    )


def test_intervals_hold_the_value_and_val_has_none(tables):
    for row in tables["detection_runs"].to_pylist():
        if row["split"] == "val":
            assert row["auroc_low"] is None
        elif row["auroc"] is not None:
            assert row["auroc_low"] < row["auroc"] < row["auroc_high"]
            assert row["aurc_low"] < row["aurc_high"]


def test_levels_tables(tables):
    rows = tables["table_a3"].to_pylist()
    assert [(row["signal"], row["level"]) for row in rows[:3]] == [
        ("mc", None),
        ("neg_delta", "D1"),
        ("neg_delta", "D2"),
    ]
    mc = rows[0]["auroc"]
    for row in rows[1:]:
        assert row["beats_mc"] == (row["auroc"] > mc)
        assert row["best_of_level"] == (
            row["auroc"] == max(other["auroc"] for other in rows[1:] if other["level"] == row["level"])
        )
    assert {row["signal"] for row in tables["table_a4"].to_pylist()} == {
        "mc",
        "one_minus_conf",
        "w_clf",
        "neg_delta",
        "neg_align",
        "clf_energy",
    }


def test_positives_are_counted_apart_only_where_there_are_others(rows, tables):
    counts = {
        row["population"]: row["n"]
        for row in tables["detection_runs"].to_pylist()
        if row["task"] == "clf" and row["split"] == "test"
    }
    assert counts == {"all": 40, "positives": 32}
    found = analyse(table([row for row in rows if row["has_mask"]]))["detection_runs"]
    assert {row["population"] for row in found.to_pylist() if row["task"] == "clf"} == {"all"}


@pytest.mark.parametrize("reference", ["mc", "mc_lesion"])
def test_signal_tests(tables, reference):
    where = {"task": "seg", "seed": 1, "reference": reference}
    rows = [row for row in tables["signal_tests"].to_pylist() if where.items() <= row.items()]
    assert len(rows) == 6 * 4 + 2 + 3  # signals, confidences, combinations: nothing of many passes
    against = only(tables["detection_runs"], **SEG, split="test", seed=1, signal=reference)
    for row in rows:
        own = only(tables["detection_runs"], **SEG, split="test", seed=1, signal=row["signal"], level=row["level"])
        assert row["auroc"] == pytest.approx(own["auroc"])
        assert row["auroc_mc"] == pytest.approx(against["auroc"])
        assert row["difference"] == pytest.approx(row["auroc"] - row["auroc_mc"])
        assert row["p"] <= row["p_holm"] <= 1
        if abs(row["z"]) < 0.1:  # too little to divide by
            continue
        deviation = row["difference"] / row["z"]
        assert row["difference_high"] - row["difference_low"] == pytest.approx(2 * 1.96 * deviation, rel=0.35)
    smallest = min(rows, key=lambda row: row["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, len(rows) * smallest["p"]))


def test_curves_end_where_they_must(tables):
    points = [row for row in tables["curves"].to_pylist() if row["signal"] == "w_seg" and row["level"] == "D2"]
    for seed in (1, 2):
        for task, population in (("seg", "positives"), ("clf", "all")):
            mine = [row for row in points if (row["seed"], row["task"], row["population"]) == (seed, task, population)]
            by_curve = {
                curve: [(row["x"], row["y"]) for row in mine if row["curve"] == curve]
                for curve in ("roc", "pr", "risk_coverage")
            }
            counts = only(
                tables["detection_runs"],
                task=task,
                population=population,
                split="test",
                seed=seed,
                signal="w_seg",
                level="D2",
            )
            rate = counts["n_failures"] / counts["n"]
            assert (by_curve["roc"][0], by_curve["roc"][-1]) == ((0, 0), (1, 1))
            assert by_curve["pr"][-1] == pytest.approx((1, rate))
            assert by_curve["risk_coverage"][-1] == pytest.approx((1, rate))
            x, y = np.array(by_curve["roc"]).T
            assert np.trapezoid(y, x) == pytest.approx(counts["auroc"])
    assert {row["population"] for row in points if row["task"] == "clf"} == {"all"}


def test_long_curves_are_thinned():
    found = analyse(table([row for row in random_run(1, n=400) if row["split"] == "test"]), 0)["curves"].to_pylist()
    points = [
        row for row in found if row["curve"] == "risk_coverage" and row["signal"] == "mc" and row["task"] == "clf"
    ]
    assert len(points) == 100
    assert points[-1]["x"] == 1


def test_the_same_rows_give_the_same_tables(rows, tables):
    again = analyse(table(rows), 300)
    assert all(again[name].equals(table_) for name, table_ in tables.items())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_samples_never_crash(count):
    rows = [row for row in random_run(1, n=5) if row["split"] == "val"]
    rows += [row for row in random_run(1, n=5) if row["split"] == "test"][:count]
    tables = analyse(table(rows), 50)
    for row in tables["detection"].to_pylist():
        assert row["auroc"] is not None or row["note"]
    for name in ("correlations", "gate_wrong_correct", "tim_magnitude"):
        for row in tables[name].to_pylist():
            assert row["note"] or count


def test_a_missing_gate_and_missing_dropout():
    rows = [row | UNSUPPORTED | dict.fromkeys(TIM) for row in random_run(1)]
    tables = analyse(table(rows), 50)
    assert only(tables["table_a2"], detector="best_oracle")["note"].startswith("nothing to choose from on test")
    assert only(tables["table_a5"], detector="mean")["note"] == "no such score for this method"
    assert only(tables["table3"], detector="one_minus_conf")["auroc"] is not None
    assert len(tables["scatter"]) == 0
    assert tables["signal_tests"].to_pylist() == []
    assert {row["note"] for row in tables["tim_magnitude"].to_pylist()} == {"the method has no TIM here"}


def test_a_constant_signal_is_not_given_a_half():
    """What a gate that is switched off at D1 looks like."""
    rows = random_run(1)
    for row in rows:
        row["w_seg"] = [1.0, *row["w_seg"][1:]]
    tables = analyse(table(rows), 50)
    found = only(tables["table2"], signal="w_seg", level="D1")
    assert (found["auroc"], found["note"]) == (None, "the score is the same for all samples")
    assert only(tables["table2"], signal="w_seg", level="D2")["auroc"] is not None
    rho = only(tables["correlations"], x="w_seg", y="iou", level="D1")
    assert (rho["rho"], rho["note"]) == (None, "one of the two is the same for all samples")

"""Table 4, paired tests of methods, classification against scikit-learn, rank agreement, claims."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from btinet.analysis.claims import FAILS, HOLDS, UNTOLD, all_claims
from btinet.analysis.paper import TABLE4
from btinet.analysis.quality import classification_entry, segmentation_entry
from btinet.config import VARIANTS
from btinet.errors import InputError
from tests.analysis.rows import analyse, as_run, method, only, sample, table


def runs(name, ious, seed=1, variant="full", dataset="busi", wrong=()):
    """Test samples with these IoUs, of which some are classified wrongly."""
    rows = [sample(i, iou=iou, y_true=i % 2, y_pred=(i + (i in wrong)) % 2) for i, iou in enumerate(ious)]
    key = {"method": name, "variant": variant, "dataset": dataset, "seed": seed}
    return as_run(rows, **key, stage=2 if name == "btinet" else 1, run_id=f"{dataset}-{name}-{variant}-{seed}")


# quality


def test_classification_is_scikit_learns_also_in_resamples():
    rng = np.random.default_rng(0)
    y_true, y_pred = rng.integers(0, 4, 80), rng.integers(0, 5, 80)
    rows = table([sample(i, y_true=int(t), y_pred=int(p)) for i, (t, p) in enumerate(zip(y_true, y_pred, strict=True))])
    weights = np.concatenate([np.ones((1, 80)), rng.integers(0, 4, (5, 80))]).astype(np.uint8)
    found = classification_entry(rows, weights).values
    for index, weight in enumerate(weights):
        repeated = np.repeat(y_true, weight), np.repeat(y_pred, weight)
        expected = precision_recall_fscore_support(*repeated, average="weighted", zero_division=0)[:3]
        assert [found[name][index] for name in ("precision", "recall", "f1")] == pytest.approx(expected)
        assert found["accuracy"][index] == pytest.approx(100 * accuracy_score(*repeated))


def test_segmentation_of_resamples():
    rng = np.random.default_rng(0)
    ious, masks = rng.random(30).astype(np.float32), rng.random(30) < 0.7
    rows = table(
        [
            sample(i, iou=float(iou), has_mask=bool(mask), pred_area=i)
            for i, (iou, mask) in enumerate(zip(ious, masks, strict=True))
        ]
    )
    weights = np.concatenate([np.ones((1, 30)), rng.integers(0, 4, (20, 30)), np.zeros((1, 30))]).astype(np.uint8)
    found = segmentation_entry(rows, weights).values
    dice = np.array(rows["dice"])
    for index, weight in enumerate(weights[:-1]):
        chosen = np.repeat(np.arange(30), weight)
        with_mask = chosen[masks[chosen]]
        assert found["iou"][index] == pytest.approx(100 * ious[with_mask].mean(), rel=1e-5)
        assert found["median_dice"][index] == pytest.approx(100 * np.median(dice[with_mask]), rel=1e-5)
        assert found["empty_area"][index] == pytest.approx(chosen[~masks[chosen]].mean())
    assert all(np.isnan(values[-1]) for values in found.values())


# Table 4


def test_table4_has_every_variant_the_papers_first():
    rows = [
        *runs("btinet", [0.5, 0.7], variant="softmax-gate"),
        *runs("btinet", [0.8, 0.8]),
        *runs("btinet", [0.7, 0.8], variant="no-gate-loss"),
        *runs("btinet", [0.6, 0.7], variant="no-upa"),
        *runs("btinet", [0.4, 0.5], variant="plain", wrong=(0,)),
        *runs("unet", [0.4, 0.5]),
        *runs("btinet", [0.4, 0.5], dataset="phantom"),  # alone in its dataset
    ]
    found = analyse(table(rows))["table4"]
    assert found["variant"].to_pylist() == ["plain", "no-upa", "full", "softmax-gate", "no-gate-loss"]
    plain = only(found, variant="plain")
    assert (plain["mscf"], plain["tim"], plain["upa"]) == (False, False, False)
    assert (plain["iou"], plain["accuracy"]) == pytest.approx((45, 50), abs=1e-4)
    assert (plain["paper_iou"], plain["paper_iou_std"], plain["paper_accuracy"]) == (67.43, 1.21, 84.62)
    assert "earlier paper" in plain["note"]
    assert (plain["iou_change"], plain["accuracy_change"]) == pytest.approx((-35, -50), abs=1e-4)
    assert plain["iou_change_low"] <= plain["iou_change"] <= plain["iou_change_high"]
    assert only(found, variant="full")["iou_change"] is None
    assert only(found, variant="no-gate-loss")["paper_iou"] == pytest.approx(73.97)
    softmax = only(found, variant="softmax-gate")
    assert (softmax["mscf"], softmax["paper_iou"], softmax["note"]) == (None, None, "not in the paper's Table 4")


def test_table4_names_are_the_variants():
    assert TABLE4.keys() <= VARIANTS.keys()
    for variant, (mscf, tim, upa) in TABLE4.items():
        parts = {"mscf": True, "tim": True, "upa": True} | dict(VARIANTS[variant].get("model", {}))
        assert (parts["mscf"], parts["tim"], parts["upa"]) == (mscf, tim, upa)


# paired tests


def test_methods_are_paired_by_seed_and_sample():
    rng = np.random.default_rng(0)
    base = rng.random(60) * 0.8
    rows = []
    for seed in (1, 2):
        rows += runs("btinet", base + 0.1, seed)
        rows += runs("mtan", base + 0.1 * rng.random(60), seed, wrong=range(30))
        rows += runs("unet", base, seed)
    rows += runs("unet", base, 3)  # a seed that BTI-Net lacks
    found = analyse(table(rows), 500)["methods_tests"]
    unet = only(found, method="unet", quantity="iou")
    assert (unet["seeds"], unet["n"]) == (2, 60)
    assert unet["difference"] == pytest.approx(10, abs=1e-4)
    # the same on every sample, so that pairing leaves no spread, however different the samples are
    assert (unet["difference_low"], unet["difference_high"]) == pytest.approx((10, 10), abs=1e-4)
    assert unet["p"] == pytest.approx(2 / 501)
    mtan = only(found, method="mtan", quantity="iou")
    assert mtan["difference_low"] < mtan["difference"] < mtan["difference_high"]
    assert mtan["difference"] == pytest.approx(mtan["reference"] - mtan["value"])
    assert mtan["p_holm"] == pytest.approx(2 * 2 / 501)
    assert "2 seeds" in mtan["note"]
    assert only(found, method="mtan", quantity="accuracy")["difference"] == pytest.approx(50)


def test_no_tests_without_btinet_or_a_common_seed():
    assert len(analyse(table(runs("unet", [0.5]) + runs("mtan", [0.5])))["methods_tests"]) == 0
    assert len(analyse(table(runs("btinet", [0.5]) + runs("mtan", [0.5], seed=2)))["methods_tests"]) == 0


def test_runs_that_cannot_be_compared_are_refused():
    full, other = runs("btinet", [0.5, 0.6, 0.7]), runs("mtan", [0.5, 0.6])
    with pytest.raises(InputError, match=r"busi-btinet-full-1 and busi-mtan-full-1 .* 3 and 2 images, of which 2 are"):
        analyse(table(full + other))
    once, again = runs("btinet", [0.5]), as_run(runs("btinet", [0.9]), stage=1, run_id="without-gate-loss")
    with pytest.raises(InputError, match="with different settings"):  # though evaluated after another stage
        analyse(table(once + again))


# rank agreement


def test_rank_agreement_is_kendalls_tau():
    ours = {"mtan": 0.6, "mtanet": 0.7, "mtl-oca": 0.65, "btinet": 0.9}
    rows = [row for name, iou in ours.items() for row in method(name, iou)]
    found = only(analyse(table(rows))["rank_agreement"], artefact="5", column="iou")
    expected = stats.kendalltau(list(ours.values()), [68.41, 71.24, 72.14, 74.50])
    assert (found["cells"], found["dataset"]) == (4, "busi")
    assert (found["tau"], found["p"]) == pytest.approx((expected.statistic, expected.pvalue))
    assert only(analyse(table(rows))["rank_agreement"], artefact="A17", column="iou")["note"] == (
        "fewer than three cells"
    )


# claims


def claim(tables, dataset, start):
    rows = [row for row in tables["claims"].to_pylist() if row["dataset"] == dataset and row["claim"].startswith(start)]
    assert len(rows) == 1, rows
    return rows[0]


def test_claims_hold_fail_or_cannot_be_told():
    rng = np.random.default_rng(0)
    base = rng.random(80) * 0.6
    rows = runs("btinet", base + 0.3)
    rows += runs("densemtl", base, wrong=range(10))
    rows += runs("mti-net", base + 0.35)
    rows += runs("missformer", base + 0.3 + rng.normal(0, 0.05, 80))
    tables = analyse(table(rows), 400)
    better = claim(tables, "busi", "BTI-Net exceeds DenseMTL in IoU; the paper has +1.67")
    assert (better["verdict"], better["stated"], better["source"]) == (HOLDS, True, "4.3")
    assert better["numbers"] == "btinet − densemtl, iou: +30.00 [+30.00, +30.00]"
    worse = claim(tables, "busi", "BTI-Net exceeds MTI-Net")
    assert worse["verdict"] == FAILS
    unclear = claim(tables, "busi", "BTI-Net exceeds MISSFormer")
    assert (unclear["verdict"], unclear["reason"]) == (UNTOLD, "an interval includes 0")
    assert claim(tables, "busi", "BTI-Net has the highest IoU")["verdict"] == FAILS  # one of several is enough
    trailing = claim(tables, "busi", "DenseMTL segments worse than MTI-Net")
    assert trailing["verdict"] == HOLDS
    lacking = claim(tables, "busi", "MTANet segments better than MTAN")
    assert (lacking["verdict"], lacking["reason"]) == (UNTOLD, "not among these runs")
    absent = claim(tables, "ham10000", "BTI-Net has the highest IoU")
    assert (absent["verdict"], absent["reason"]) == (UNTOLD, "no runs on ham10000")


def test_a_claim_of_no_difference():
    rng = np.random.default_rng(0)

    def rows(shift):
        found = []
        for i in range(80):
            wrong = i % 4 == 0
            w_clf = [float(v) for v in rng.random(4) + shift * (not wrong)]
            found.append(sample(i, iou=float(rng.random()), y_pred=int(wrong), w_clf=w_clf, w_seg=[0.0] * 4))
        return as_run(found, dataset="busi")

    same = claim(analyse(table(rows(0.0)), 300), "busi", "delta of wrongly and of correctly")
    assert (same["verdict"], same["numbers"].count("[")) == (HOLDS, 2)
    assert claim(analyse(table(rows(1.0)), 300), "busi", "delta of wrongly and of correctly")["verdict"] == FAILS


def test_the_best_signal_of_each_seed():
    def rows(seed, good):
        found = []
        for i in range(20):
            signals = {name: [(i * 7 % 20) / 20] * 4 for name in ("w_seg", "align", "seg_energy", "w_clf")}
            signals["w_seg"] = [0.5, 0.5, 0.5, 0.5]
            signals["w_seg"][good] = 1 - i / 20
            found.append(sample(i, iou=(i + 1) / 21, **signals))
        return as_run(found, seed=seed, run_id=f"r{seed}")

    start = "The same signal and level"
    agree = claim(analyse(table(rows(1, 2) + rows(2, 2))), "phantom", start)
    assert (agree["verdict"], agree["numbers"]) == (HOLDS, "seed 1: w_seg D3; seed 2: w_seg D3")
    assert claim(analyse(table(rows(1, 2) + rows(2, 3))), "phantom", start)["verdict"] == FAILS
    assert claim(analyse(table(rows(1, 2))), "phantom", start)["verdict"] == UNTOLD


def test_claims_about_brisc_count_its_tumours_as_the_paper_does():
    unsure = {"mc_clf_entropy": 0.9}
    rows = [sample(0, y_pred=1), sample(1, **unsure)]  # with a tumour: the wrong one is the surer one
    rows += [sample(i, y_pred=1, has_mask=False, **unsure) for i in (2, 3)]  # without: wrong and unsure
    found = claim(analyse(table(as_run(rows, dataset="brisc2025"))), "brisc2025", "Monte Carlo dropout's entropy")
    assert found["numbers"].startswith("0.5 − MC, AUROC: +0.500")


def test_claims_of_no_dataset_are_checked_on_others_too():
    found = analyse(table(runs("btinet", [0.3, 0.9], dataset="mine")))["claims"].to_pylist()
    mine = [row for row in found if row["dataset"] == "mine"]
    assert len(mine) == sum(one.general for one in all_claims()) + 1
    assert not any(row["stated"] for row in mine)
    assert all(row["reason"] or row["numbers"] for row in found if row["verdict"] == UNTOLD)

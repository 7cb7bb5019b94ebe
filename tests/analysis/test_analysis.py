"""Every number here is computed by hand or by brute force."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from btinet.analysis import load_predictions
from btinet.analysis import paper as paper_module
from btinet.analysis.methods import RANDOM_START
from btinet.analysis.paper import BRISC_ERRORS, IMAGE_LEVEL_SPLIT, LESION_WISE, TABLE5, TABLE6
from btinet.errors import InputError
from btinet.evaluation.schema import PREDICTIONS
from btinet.models.registry import METHODS, method_class
from btinet.partitions import write_partition
from btinet.storage import Storage
from tests.analysis.rows import CLF, SILENT, UNSUPPORTED, analyse, as_run, method, only, sample, table

# Tables A17 and A18


def test_segmentation_is_per_image_over_samples_with_a_mask():
    rows = [
        sample(0, iou=1.0),  # dice 1
        sample(1, iou=0.6),  # dice 0.75
        sample(2, iou=0.0),  # dice 0
        sample(3, iou=1 / 3),  # dice 0.5
        sample(4, iou=0.0, has_mask=False, pred_area=30),
        sample(5, iou=0.0, has_mask=False, pred_area=0),
    ]
    row = only(analyse(table(rows))["segmentation"])
    assert row["n"] == 4
    assert row["n_empty"] == 2
    assert row["iou"] == pytest.approx(100 * (1 + 0.6 + 0 + 1 / 3) / 4)
    assert row["dice"] == pytest.approx(56.25)
    assert row["precision"] == pytest.approx(56.25)
    assert row["recall"] == pytest.approx(56.25)
    assert row["median_dice"] == pytest.approx(62.5)
    assert row["empty_area"] == 15
    assert row["empty_hit"] == 50


def test_classification_by_hand():
    # class 0: 3 true, 2 found, 1 false alarm; class 1: 1 true, 0 found, 1 false alarm
    pairs = [(0, 0), (0, 0), (0, 1), (1, 0)]
    rows = [sample(i, y_true=true, y_pred=pred, has_mask=i != 0) for i, (true, pred) in enumerate(pairs)]
    row = only(analyse(table(rows))["classification"])
    assert row["n"] == 4  # with and without a mask
    assert row["accuracy"] == 50
    assert row["precision"] == pytest.approx((3 * 2 / 3 + 1 * 0) / 4)
    assert row["recall"] == pytest.approx(0.5)
    assert row["f1"] == pytest.approx(3 * (2 / 3) / 4)


def test_population_is_the_last_stage_and_the_test_split():
    rows = [
        sample(0, iou=0.9),
        sample(0, iou=0.1, stage=1),
        sample(0, iou=0.2, split="val"),
        sample(0, iou=0.3, split="val", stage=1),
        *as_run([sample(0, iou=0.4, stage=1)], run_id="u42", method="unet"),
    ]
    tables = analyse(table(rows))
    assert only(tables["segmentation"], method="btinet")["iou"] == pytest.approx(90)
    assert only(tables["segmentation"], method="btinet")["stage"] == 2
    assert only(tables["segmentation"], method="unet")["iou"] == pytest.approx(40)
    assert only(tables["segmentation"], method="unet")["stage"] == 1
    signals = tables["detection_runs"].to_pylist()
    assert {row["n"] for row in signals if row["split"] == "val" and row["method"] == "btinet"} == {1}


def test_mean_and_sample_deviation_over_seeds():
    rows = [
        row
        for seed, iou in ((42, 0.7), (123, 0.8), (456, 0.75))
        for row in as_run([sample(0, iou=iou)], seed=seed, run_id=f"r{seed}")
    ]
    row = only(analyse(table(rows))["segmentation"])
    assert row["seeds"] == 3
    assert row["iou"] == pytest.approx(75)
    assert row["iou_std"] == pytest.approx(5)  # sqrt((25 + 25 + 0) / 2)
    single = only(analyse(table(rows[:1]))["segmentation"])
    assert single["iou_std"] is None


def test_settings_are_kept_apart():
    rows = [
        row
        for dataset, iou in (("busi", 0.1), ("phantom", 0.3))
        for method, more in (("btinet", 0.0), ("unet", 0.1))
        for variant, yet_more in (("full", 0.0), ("no-upa", 0.05))
        for row in as_run(
            [sample(0, iou=iou + more + yet_more)],
            run_id=f"{dataset}-{method}-{variant}",
            dataset=dataset,
            method=method,
            variant=variant,
        )
    ]
    tables = analyse(table(rows))
    assert len(tables["segmentation"]) == 8
    found = only(tables["segmentation"], dataset="phantom", method="unet", variant="no-upa")
    assert found["iou"] == pytest.approx(45)
    assert len(tables["table2"]) == 8 * 5
    assert len(tables["table3"]) == 8 * 4


def test_the_same_seed_twice_is_refused():
    rows = [sample(0), *as_run([sample(0)], run_id="other")]
    with pytest.raises(InputError, match="r42 and other"):
        analyse(table(rows))


# failure detection


def test_table2_by_hand():
    ious = [0.4, 0.49, 0.5, 0.9]  # 0.5 itself is no failure
    w_seg = [[0.9, 0.1, 0.5, 0.3], [0.8, 0.2, 0.5, 0.9], [0.1, 0.8, 0.5, 0.4], [0.2, 0.9, 0.5, 0.2]]
    variance = [0.3, 0.1, 0.2, 0.0]
    rows = [
        sample(i, iou=iou, w_seg=w, mc_seg_var=v)
        for i, (iou, w, v) in enumerate(zip(ious, w_seg, variance, strict=True))
    ]
    rows.append(sample(9, iou=0.0, has_mask=False, w_seg=[0.0, 1.0, 0.0, 0.0]))  # not in the population
    found = analyse(table(rows))["table2"]
    auroc = {row["level"]: row["auroc"] for row in found.to_pylist()}
    assert auroc == pytest.approx({None: 0.75, "D1": 1.0, "D2": 0.0, "D3": None, "D4": 0.75})
    auprc = {row["level"]: row["auprc"] for row in found.to_pylist()}
    # mc and D4: ranks 1 and 3 -> (1/1 + 2/3) / 2; D2: ranks 3 and 4 -> (1/3 + 2/4) / 2; D3 tells nothing
    assert auprc == pytest.approx({None: 5 / 6, "D1": 1.0, "D2": 5 / 12, "D3": None, "D4": 5 / 6})
    assert only(found, level="D3")["note"] == "the score is the same for all samples"
    assert {(row["n"], row["n_failures"]) for row in found.to_pylist()} == {(4, 2)}


def test_signs_follow_the_paper():
    failing = {"w_seg": [0.9] * 4, "w_clf": [0.1] * 4, "align": [0.1] * 4}
    failing |= {"seg_energy": [2.0] * 4, "clf_energy": [-2.0] * 4, "conf": 0.2}
    rows = [sample(0, iou=0.1, y_pred=1, **failing), sample(1, conf=0.9)]
    found = analyse(table(rows))["detection_runs"]
    expected = {"w_seg": 1, "w_clf": 0, "neg_delta": 1, "neg_align": 1, "seg_energy": 1, "clf_energy": 0}
    for task in ("seg", "clf"):
        for signal, auroc in expected.items():
            assert only(found, task=task, split="test", signal=signal, level="D3")["auroc"] == auroc
        assert only(found, task=task, split="test", signal="one_minus_conf")["auroc"] == 1


def test_table3_separates_the_oracle_from_the_choice_on_validation():
    test_rows = [
        sample(i, y_pred=wrong, w_clf=[a, b, 0.5, 0.5], w_seg=[a, b, 0.5, 0.5], conf=conf, mc_clf_entropy=mc)
        for i, (wrong, a, b, conf, mc) in enumerate(
            [
                (1, 0.9, 0.6, 0.1, 0.0),
                (1, 0.8, 0.2, 0.2, 0.0),
                (0, 0.1, 0.5, 0.9, 1.0),
                (0, 0.2, 0.1, 0.8, 1.0),
            ]
        )
    ]
    val_rows = [
        sample(i, y_pred=wrong, split="val", w_clf=[a, b, 0.5, 0.5], w_seg=[a, b, 0.5, 0.5])
        for i, (wrong, a, b) in enumerate([(1, 0.1, 0.9), (0, 0.9, 0.1)])
    ]
    found = analyse(table(test_rows + val_rows))["table3"]
    oracle, chosen = only(found, detector="upa_oracle"), only(found, detector="upa_validation")
    assert (oracle["signal"], oracle["level"], oracle["auroc"]) == ("w_clf", "D1", 1.0)
    assert (chosen["signal"], chosen["level"], chosen["auroc"]) == ("w_clf", "D2", 0.75)
    assert only(found, detector="one_minus_conf")["auroc"] == 1.0
    assert only(found, detector="mc")["auroc"] == 0.0


def test_table3_chooses_once_for_all_seeds():
    rows = []
    for seed, d1, d2 in ((1, 0.9, 0.9), (2, 0.1, 0.6)):  # D1 is right once, D2 twice
        samples = [
            sample(0, y_pred=1, w_clf=[d1, d2, 0.5, 0.5], w_seg=[d1, d2, 0.5, 0.5]),
            sample(1, w_clf=[0.5, 0.5, 0.5, 0.5]),
        ]
        rows += as_run(samples, seed=seed, run_id=f"r{seed}")
    oracle = only(analyse(table(rows))["table3"], detector="upa_oracle")
    assert (oracle["level"], oracle["seeds"], oracle["auroc"], oracle["auroc_std"]) == ("D2", 2, 1.0, 0.0)


# what is undefined is null, with the reason


@pytest.mark.parametrize(
    ("wrong", "fields", "reason"),
    [
        ([0, 0], {}, "no failures"),
        ([1, 1], {}, "all samples are failures"),
        ([0, 1], {"w_clf": [float("nan")] * 4, "w_seg": [0.5] * 4}, "no such score for this method"),
        ([0, 1], UNSUPPORTED, "no such score for this method"),
        ([0, 1], {"y_pred": None, "correct": None, "conf": None}, "the method does not classify"),
    ],
)
def test_undefined_detection(wrong, fields, reason):
    rows = [sample(i, y_pred=fault) | fields for i, fault in enumerate(wrong)]
    tables = analyse(table(rows))
    found = only(tables["detection_runs"], **CLF, signal="w_clf", level="D1")
    assert (found["auroc"], found["auprc"], found["note"]) == (None, None, reason)
    assert len(tables["table3"]) == 4


def test_one_score_missing():
    rows = [sample(0), sample(1, y_pred=1), sample(2, w_clf=[float("inf"), 0.1, 0.1, 0.1])]
    found = analyse(table(rows))["detection_runs"]
    bad = only(found, **CLF, signal="w_clf", level="D1")
    assert (bad["auroc"], bad["note"]) == (None, "score missing or not finite for 1 of 3 samples")
    assert only(found, **CLF, signal="w_clf", level="D2")["auroc"] == 0.75


def test_nothing_to_choose_from():
    tables = analyse(table([sample(0), sample(1, y_pred=1)]))  # no validation rows at all
    chosen = only(tables["table3"], detector="upa_validation")
    assert (chosen["signal"], chosen["auroc"]) == (None, None)
    assert chosen["note"] == "nothing to choose from on val: no samples"
    assert (chosen["n"], chosen["n_failures"]) == (2, 1)


def test_segmentation_only_method_and_run_without_test_rows():
    rows = [sample(0, stage=1) | SILENT | {"method": "unet", "run_id": "u", "seed": 7}, sample(0, split="val")]
    tables = analyse(table(rows))
    unet = only(tables["classification"], method="unet")
    assert (unet["n"], unet["accuracy"], unet["note"]) == (1, None, "the method does not classify")
    assert only(tables["segmentation"], method="unet")["iou"] == pytest.approx(80)
    assert only(tables["table2"], method="unet", signal="mc")["auroc"] is None
    assert only(tables["segmentation"], method="btinet")["note"] == "no samples with a mask"
    assert only(tables["classification"], method="btinet")["note"] == "no samples"


def test_note_names_the_seed_where_a_value_is_undefined():
    unsure = {"mc_clf_entropy": 0.2}
    rows = as_run([sample(0), sample(1) | unsure], seed=1, run_id="r1")
    rows += as_run([sample(0), sample(1, y_pred=1) | unsure], seed=2, run_id="r2")
    found = only(analyse(table(rows), 0)["table3"], detector="mc")
    assert (found["auroc"], found["auroc_std"], found["note"]) == (1.0, None, "seed 1: no failures")


# comparison with the paper


def test_comparison_with_the_paper():
    rows = []
    for seed, iou in ((1, 0.74), (2, 0.76)):
        rows += as_run([sample(0, iou=iou)], dataset="busi", seed=seed, run_id=f"b{seed}")
    rows += as_run([sample(0, iou=0.1)], dataset="busi", variant="no-upa", run_id="b-no-upa")
    rows += [sample(0)]
    found = analyse(table(rows))["comparison"]
    assert set(found["dataset"].to_pylist()) == {"busi"}
    assert {row["artefact"] for row in found.to_pylist() if row["variant"] != "full"} == {"4"}
    iou = only(found, artefact="A17", quantity="iou")
    ours_std = 2**0.5  # of 74 and 76
    assert iou["ours"] == pytest.approx(75, abs=1e-4)
    assert (iou["paper"], iou["paper_std"]) == (74.5, 0.3)
    assert iou["abs_diff"] == pytest.approx(0.5, abs=1e-4)
    assert iou["z"] == pytest.approx(0.5 / (ours_std**2 + 0.3**2) ** 0.5, abs=1e-4)
    assert only(found, artefact="A18", quantity="f1")["z"] is None
    d2 = only(found, artefact="2", quantity="D2 auroc")
    assert (d2["ours"], d2["paper"], d2["abs_diff"], d2["note"]) == (None, 0.824, None, "no failures")
    of_tables = Counter(found["artefact"].to_pylist())
    assert of_tables == {
        "A17": 6,
        "A18": 5,
        "2": 10,
        "3": 6,
        "A2": 6,
        "A3": 17,
        "A4": 18,
        "A5": 12,
        "A6": 16,
        "4": 4,
    } | {"Fig. A2": 2}


# methods beside each other (Tables 5 and 6)


def test_table5_by_hand():
    rows = [
        *method("pad-net", 0.7),
        *method("btinet", 0.75, correct=2),
        *method("unet", 0.9, correct=None),
        *method("mtan", 0.68, correct=1, seed=1),
        *method("mtan", 0.70, correct=2, seed=2),
        *method("btinet", 0.1, variant="no-upa", run_id="no-upa"),
        *method("btinet", 0.5, dataset="phantom"),
    ]
    found = analyse(table(rows))["table5"]
    assert list(zip(found["dataset"].to_pylist(), found["method"].to_pylist(), strict=True)) == [
        ("busi", "mtan"),  # the paper's order, BTI-Net last; then what it does not compare
        ("busi", "btinet"),
        ("busi", "pad-net"),
        ("phantom", "btinet"),
    ]
    mtan = only(found, method="mtan")
    assert mtan["seeds"] == 2
    assert (mtan["iou"], mtan["iou_std"]) == pytest.approx((69, 2**0.5), rel=1e-5)
    assert (mtan["accuracy"], mtan["accuracy_std"]) == pytest.approx((75, 50 / 2**0.5))
    assert (mtan["paper_iou"], mtan["paper_iou_std"]) == (68.41, 1.12)
    assert (mtan["paper_accuracy"], mtan["paper_accuracy_std"]) == (87.84, 0.89)
    assert mtan["iou_difference"] == pytest.approx(69 - 68.41, abs=1e-4)
    assert mtan["accuracy_difference"] == pytest.approx(75 - 87.84)
    assert mtan["note"] == "three runs on 117 images cannot have the paper's mean accuracy"
    btinet = only(found, method="btinet", dataset="busi")
    assert (btinet["accuracy"], btinet["paper_accuracy"], btinet["note"]) == (100, 93.16, None)
    extended = only(found, method="pad-net")
    assert (extended["paper_iou"], extended["iou_difference"]) == (None, None)
    assert extended["note"] == "not in the paper's Table 5"
    assert only(found, dataset="phantom")["paper_iou"] is None


def test_table6_by_hand():
    rows = [
        *method("mtan", 0.6),
        *method("btinet", 0.75),
        *method("swin-unet", 0.5, correct=None),
        *method("unet", 0.7, correct=None),
    ]
    found = analyse(table(rows))["table6"]
    assert found["method"].to_pylist() == ["unet", "swin-unet", "btinet", "mtan"]
    assert not [name for name in found.column_names if "accuracy" in name]
    unet = only(found, method="unet")
    assert (unet["iou"], unet["iou_difference"]) == pytest.approx((70, 70 - 66.42), abs=1e-4)
    assert (unet["paper_iou"], unet["paper_iou_std"], unet["note"]) == (66.42, 1.12, None)
    assert "random weights" in only(found, method="swin-unet")["note"]
    assert (only(found, method="mtan")["paper_iou"], only(found, method="mtan")["note"]) == (
        None,
        "not in the paper's Table 6",
    )


@pytest.mark.parametrize(
    ("name", "dataset", "notes"),
    [
        ("densemtl", "ham10000", [IMAGE_LEVEL_SPLIT]),
        ("btinet", "ham10000", [IMAGE_LEVEL_SPLIT, LESION_WISE]),
        ("btinet", "brisc2025", [BRISC_ERRORS]),
        ("mtan", "brisc2025", ["three runs on 1,000 images cannot have the paper's mean accuracy"]),
    ],
)
def test_inconsistent_references_are_flagged(name, dataset, notes):
    rows = [row for other in ("btinet", "densemtl", "mtan") for row in method(other, 0.5, dataset=dataset)]
    assert only(analyse(table(rows))["table5"], method=name)["note"] == "; ".join(notes)


@pytest.mark.parametrize(
    ("other", "correct", "table5", "table6"),
    [("btinet", 1, 0, 0), ("mtan", 1, 2, 0), ("unet", None, 0, 2)],
)
def test_a_table_of_one_method_is_empty(other, correct, table5, table6):
    rows = method("btinet", 0.5) + (method(other, 0.5, correct) if other != "btinet" else [])
    tables = analyse(table(rows))
    assert (len(tables["table5"]), len(tables["table6"])) == (table5, table6)


def test_every_printed_method_has_a_place():
    """No row of the paper's tables is left out, and our names are those of the registry."""
    paper = yaml.safe_load(Path(paper_module.__file__).with_name("reference.yaml").read_text())
    assert set(TABLE5.values()) == paper["table5_joint"].keys()
    assert set(TABLE6.values()) == paper["table6_segmentation_iou"].keys()
    assert TABLE5.keys() | TABLE6.keys() | RANDOM_START.keys() <= METHODS.keys()
    single = {name for name in METHODS if "clf" not in method_class(name).about.tasks}
    assert single == TABLE6.keys() - {"btinet"}


# reading


def predictions_of(run_id, root):
    return root / "results" / "predictions" / "dataset=phantom" / "method=btinet" / f"{run_id}.parquet"


def test_load_reads_only_the_runs_asked_for(tmp_path):
    root = Storage(str(tmp_path))
    for name in ("a", "b", "c"):
        write_partition(predictions_of(name, root), table(as_run([sample(0)], run_id=name)))
    predictions_of("c", root).write_bytes(b"torn")
    loaded = load_predictions(root, ["b", "a"])
    assert loaded["run_id"].to_pylist() == ["b", "a"]
    assert loaded.schema.equals(PREDICTIONS)
    with pytest.raises(InputError, match=r"no predictions of x, y;"):
        load_predictions(root, ["a", "x", "y"])
    with pytest.raises(InputError, match="no runs"):
        load_predictions(root, [])


def test_what_results_of_earlier_versions_lack_is_null(tmp_path):
    root = Storage(str(tmp_path))
    rows = {
        name: table(
            as_run(
                [sample(i, iou=iou, split=split) for split in ("val", "test") for i, iou in enumerate((0.2, 0.8, 0.9))],
                run_id=name,
                seed=seed,
            )
        )
        for seed, name in enumerate(("earlier", "now"))
    }
    rows["earlier"] = rows["earlier"].drop_columns(["mask_conf"])
    for name, rows_ in rows.items():
        write_partition(predictions_of(name, root), rows_)
    found = load_predictions(root, ["earlier", "now"])
    assert found["mask_conf"].null_count == len(rows["earlier"])
    detection = analyse(found)["detection_runs"]
    assert only(detection, run_id="earlier", signal="one_minus_mask_conf", split="test")["auroc"] is None
    assert only(detection, run_id="earlier", signal="mc", task="seg", split="test")["n"] == 3


def test_import_is_light():
    code = "import sys, btinet.analysis; print({'torch', 'ray', 'prefect', 'dvc'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

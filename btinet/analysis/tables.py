"""The paper's tables: segmentation (A17), classification (A18), failure detection (2, 3), methods (5, 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import precision_recall_fscore_support

from btinet.analysis.paper import comparison, table5, table6
from btinet.analysis.runs import RUN, SETTING, EvaluatedRun, evaluated_runs, over_seeds
from btinet.analysis.signals import failure_signals, failure_summary

COUNTS = ("n", "n_empty")
SEGMENTATION = (*COUNTS, "dice", "iou", "median_dice", "precision", "recall", "empty_area", "empty_hit")
CLASSIFICATION = ("n", "accuracy", "precision", "recall", "f1")
UPA_CANDIDATES = ("w_clf", "neg_delta", "neg_align", "clf_energy")
"""Signals among which Table 3 takes the best one (those of Table A4)."""

TABLE3 = pa.schema(
    [
        *(RUN.field(name) for name in SETTING),
        *(pa.field(name, pa.string()) for name in ("detector", "signal", "level")),
        pa.field("seeds", pa.int32()),
        *(
            pa.field(f"{name}{suffix}", pa.float64())
            for name in ("n", "n_failures", "auroc", "auprc")
            for suffix in ("", "_std")
        ),
        pa.field("note", pa.string()),
    ]
)


def analyse(predictions: pa.Table) -> dict[str, pa.Table]:
    """Every table, by name.

    Args:
        predictions: rows of :data:`btinet.evaluation.schema.PREDICTIONS`, any number of runs.

    Raises:
        InputError: two runs differ in nothing but their settings' hash.
    """
    runs = evaluated_runs(predictions)
    tables = {
        "segmentation_runs": segmentation_runs(runs),
        "classification_runs": classification_runs(runs),
        "failure_signals": failure_signals(runs),
    }
    tables["segmentation"] = over_seeds(tables["segmentation_runs"], SEGMENTATION)
    tables["classification"] = over_seeds(tables["classification_runs"], CLASSIFICATION)
    tables["failure_summary"] = failure_summary(tables["failure_signals"])
    tables["table2"] = table2(tables["failure_summary"])
    tables["table3"] = table3(tables["failure_summary"])
    tables["table5"] = table5(tables)
    tables["table6"] = table6(tables)
    tables["comparison"] = comparison(tables)
    return tables


def segmentation_runs(runs: list[EvaluatedRun]) -> pa.Table:
    """Table A17 for each run, on its test samples that have a mask; per image, then averaged, in percent.

    Beyond the paper, which never scores false positives on images without a lesion (paper notes B19), on the
    ``n_empty`` samples without a mask: ``empty_area``, the mean predicted area in pixels of the prepared
    size, and ``empty_hit``, the percentage with any predicted pixel.
    """
    return _per_run(runs, _segmentation, SEGMENTATION)


def classification_runs(runs: list[EvaluatedRun]) -> pa.Table:
    """Table A18 for each run, on all its test samples: accuracy in percent; precision, recall and F1 averaged
    over the classes by their support (paper notes B47), in [0, 1], as the paper prints them."""
    return _per_run(runs, _classification, CLASSIFICATION)


def table2(summary: pa.Table) -> pa.Table:
    """Table 2: segmentation failures found by Monte Carlo dropout and by w_seg at each level, on test samples
    that have a mask; one row per (setting, signal, level)."""
    rows = summary.filter((pc.field("task") == "seg") & (pc.field("split") == "test"))
    parts = [rows.filter(pc.equal(rows["signal"], signal)) for signal in ("mc", "w_seg")]
    return pa.concat_tables(parts).drop_columns(["split", "task"])


def table3(summary: pa.Table) -> pa.Table:
    """Table 3: classification failures among all test samples; one row per (setting, detector).

    ``detector`` is ``mc``, ``one_minus_conf``, or the one of :data:`UPA_CANDIDATES` x levels whose AUROC
    (mean over seeds) is highest: on test itself for ``upa_oracle``, as in the paper (paper notes B24), which
    flatters it; on the validation split for ``upa_validation``. Both are then scored on test.
    """
    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in summary.filter(pc.field("task") == "clf").to_pylist():
        settings.setdefault(tuple(row[name] for name in SETTING), []).append(row)
    rows = []
    for scores in settings.values():
        test = {(row["signal"], row["level"]): row for row in scores if row["split"] == "test"}
        val = {(row["signal"], row["level"]): row for row in scores if row["split"] == "val"}
        for detector in ("mc", "one_minus_conf"):
            rows.append({**test[detector, None], "detector": detector})
        for detector, chosen_on in (("upa_oracle", test), ("upa_validation", val)):
            rows.append({**_best(chosen_on, test), "detector": detector})
    return pa.Table.from_pylist(rows, TABLE3)


def _best(chosen_on: dict[Any, dict[str, Any]], test: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    """Test row of the candidate with the highest AUROC in ``chosen_on``; of equals, the first one listed."""
    candidates = [row for (signal, _), row in chosen_on.items() if signal in UPA_CANDIDATES]
    candidates.sort(key=lambda row: UPA_CANDIDATES.index(row["signal"]))
    defined = [row for row in candidates if row["auroc"] is not None]
    if defined:
        best = max(defined, key=lambda row: row["auroc"])
        return test[best["signal"], best["level"]]
    reason = f"nothing to choose from on {candidates[0]['split']}: {candidates[0]['note']}"
    empty = dict.fromkeys(("signal", "level", "auroc", "auroc_std", "auprc", "auprc_std"))
    return {**test["mc", None], **empty, "note": reason}


def _per_run(
    runs: list[EvaluatedRun], metrics: Callable[[pa.Table], dict[str, Any]], names: tuple[str, ...]
) -> pa.Table:
    values = [pa.field(name, pa.int64() if name in COUNTS else pa.float64()) for name in names]
    schema = pa.schema([*RUN, *values, pa.field("note", pa.string())])
    return pa.Table.from_pylist([{**run.key, **metrics(run.test)} for run in runs], schema)


def _segmentation(test: pa.Table) -> dict[str, Any]:
    masked = test.filter(test["has_mask"])
    empty = test.filter(pc.invert(test["has_mask"]))
    return {
        "n": len(masked),
        **{name: _percent(pc.mean(masked[name])) for name in ("dice", "iou", "precision", "recall")},
        "median_dice": _percent(pc.quantile(masked["dice"], 0.5)[0]),
        "n_empty": len(empty),
        "empty_area": pc.mean(empty["pred_area"]).as_py(),
        "empty_hit": _percent(pc.mean(pc.greater(empty["pred_area"], 0))),
        "note": None if len(masked) else "no samples with a mask",
    }


def _classification(test: pa.Table) -> dict[str, Any]:
    if len(test) == 0:
        return {"n": 0, "note": "no samples"}
    if test["y_pred"].null_count:
        return {"n": len(test), "note": "the method does not classify"}
    precision, recall, f1, _ = precision_recall_fscore_support(
        test["y_true"].to_numpy(), test["y_pred"].to_numpy(), average="weighted", zero_division=0
    )
    accuracy = _percent(pc.mean(test["correct"]))
    return {"n": len(test), "accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}


def _percent(fraction: pa.Scalar) -> float | None:
    return 100 * fraction.as_py() if fraction.is_valid else None

"""Rows of predictions that a hand can compute with."""

from __future__ import annotations

import pyarrow as pa

from btinet.analysis import analyse as analyse_with
from btinet.analysis.schemas import CONTRACTS
from btinet.evaluation.schema import PREDICTIONS

LEVELLED = ("w_seg", "w_clf", "align", "seg_energy", "clf_energy")
UNSUPPORTED = dict.fromkeys((*LEVELLED, "mc_seg_var", "mc_seg_var_fg", "mc_clf_entropy"))
CLF = {"task": "clf", "split": "test", "population": "all"}
SILENT = UNSUPPORTED | dict.fromkeys(("y_pred", "probs", "conf", "entropy", "correct"))


def analyse(predictions, resamples=20):
    """Few resamples: intervals have tests of their own."""
    tables = analyse_with(predictions, resamples)
    assert {name: table_.schema for name, table_ in tables.items()} == {
        name: contract.schema for name, contract in CONTRACTS.items()
    }
    return tables


def sample(number, iou=0.8, y_true=0, y_pred=0, split="test", stage=2, **fields):
    """One row; precision and recall equal dice, so that a hand can compute them."""
    has_mask = fields.pop("has_mask", True)
    dice = 2 * iou / (1 + iou)
    row = {
        "run_id": "r42",
        "preset": "tiny",
        "dataset": "phantom",
        "method": "btinet",
        "variant": "full",
        "seed": 42,
        "split_id": "paper-s42",
        "stage": stage,
        "split": split,
        "sample_id": f"{split}-{number}",
        "y_true": y_true,
        "has_mask": has_mask,
        "gt_area": 100 if has_mask else 0,
        "y_pred": y_pred,
        "probs": [0.7, 0.3],
        "conf": 0.7,
        "entropy": 0.6,
        "correct": y_true == y_pred,
        **dict.fromkeys(("tp", "fp", "fn", "pred_area"), 10),
        "iou": iou,
        **dict.fromkeys(("dice", "precision", "recall"), dice),
        "soft_iou": iou,
        "mask_conf": 0.8,
        "empty_pred": False,
        **{name: [0.5] * 4 for name in LEVELLED},
        "mc_seg_var": 0.1,
        "mc_clf_entropy": 0.1,
    }
    return row | fields


def table(rows):
    complete = [dict.fromkeys(PREDICTIONS.names) | row for row in rows]
    return pa.Table.from_pylist(complete, PREDICTIONS)


def as_run(rows, **key):
    return [row | key for row in rows]


def only(table_, **where):
    rows = [row for row in table_.to_pylist() if all(row[name] == value for name, value in where.items())]
    assert len(rows) == 1, rows
    return rows[0]


def method(name, iou, correct=1, dataset="busi", seed=42, **fields):
    """Two test samples; ``correct`` of them are classified, None where the method does not do that."""
    samples = [sample(i, iou=iou, y_pred=0 if i < (correct or 0) else 1) for i in range(2)]
    silent = SILENT if correct is None else {}
    stage = 2 if name == "btinet" else 1
    key = {"method": name, "dataset": dataset, "seed": seed, "stage": stage, "run_id": f"{dataset}-{name}-{seed}"}
    return as_run(samples, **silent | key | fields)

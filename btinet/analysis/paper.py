"""Our numbers beside the paper's, which are transcribed in ``reference.yaml``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from btinet.analysis.runs import RUN, SETTING

PAPER_DATASETS = {"busi": "BUSI", "ham10000": "HAM", "brisc2025": "BRISC"}
"""Our name of a dataset -> its key in reference.yaml."""

TABLE_A18 = {"n": "n", "accuracy": "acc", "precision": "precision", "recall": "recall", "f1": "f1"}
TABLE3_DETECTORS = {"mc": "mc", "one_minus_conf": "one_minus_conf", "upa_oracle": "upa_best"}
DETECTION = {"auroc": "auc", "auprc": "pr"}

IMAGE_LEVEL_SPLIT = "the paper's 1503 images are an image-level split, which shares lesions with training"
CAVEATS = {
    ("A17", "busi", "dice"): "the printed Dice exceeds what the printed precision and recall allow",
    ("A17", "ham10000", "n"): IMAGE_LEVEL_SPLIT,
    ("A18", "ham10000", "n"): IMAGE_LEVEL_SPLIT,
    ("A18", "ham10000", "accuracy"): "the paper's Table A15 implies 77.8 on the lesion-wise split",
    **{
        ("3", "brisc2025", f"{detector} {metric}"): "the paper counts the 860 images with a tumour only"
        for detector in TABLE3_DETECTORS
        for metric in DETECTION
    },
}
"""(artefact, dataset, quantity) -> what is wrong with the printed value (paper notes 0.3 to 0.5)."""

COMPARISON = pa.schema(
    [
        pa.field("artefact", pa.string()),
        *(RUN.field(name) for name in SETTING),
        pa.field("quantity", pa.string()),
        *(pa.field(name, pa.float64()) for name in ("ours", "ours_std", "paper", "paper_std", "abs_diff", "z")),
        pa.field("note", pa.string()),
    ]
)


def comparison(tables: dict[str, pa.Table]) -> pa.Table:
    """BTI-Net's cells of Tables A17, A18, 2 and 3 for the paper's datasets, each beside the printed value.

    Units are the printed ones. ``z`` = (ours - paper) / sqrt(ours_std^2 + paper_std^2) (paper notes 5d), null
    where either deviation is unknown or both are 0; Tables 2 and 3 are printed without deviations. ``note``
    has what stands in the way of comparing a cell.
    """
    return pa.Table.from_pylist(list(_cells(tables)), COMPARISON)


def _cells(tables: dict[str, pa.Table]) -> Iterator[dict[str, Any]]:
    paper = yaml.safe_load(Path(__file__).with_name("reference.yaml").read_text())
    for row, printed in _rows(tables["segmentation"], paper["tableA17_segmentation"]):
        for name, value in printed.items():
            yield _cell("A17", row, name, name, value)
    for row, printed in _rows(tables["classification"], paper["tableA18_classification"]):
        for name, key in TABLE_A18.items():
            yield _cell("A18", row, name, name, printed[key])
    for row, printed in _rows(tables["table2"], paper["table2_seg_failure_wseg"]):
        detector = row["level"] or "mc"
        for name, key in DETECTION.items():
            yield _cell("2", row, name, f"{detector} {name}", printed[detector][key])
    for row, printed in _rows(tables["table3"], paper["table3_clf_failure"]):
        if row["detector"] not in TABLE3_DETECTORS:
            continue
        value = printed[TABLE3_DETECTORS[row["detector"]]]
        if row["detector"] == "upa_oracle":
            names = f"ours {row['signal']} {row['level']}, paper {value['signal']} {value['level']}"
            row["note"] = row["note"] or names
        for name, key in DETECTION.items():
            yield _cell("3", row, name, f"{row['detector']} {name}", value[key])


def _rows(table: pa.Table, printed: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows of the full BTI-Net on a dataset of the paper, each with what the paper prints for it."""
    for row in table.to_pylist():
        if row["method"] == "btinet" and row["variant"] == "full" and row["dataset"] in PAPER_DATASETS:
            yield row, printed[PAPER_DATASETS[row["dataset"]]]


def _cell(artefact: str, row: dict[str, Any], name: str, quantity: str, printed: Any) -> dict[str, Any]:
    paper, paper_std = printed if isinstance(printed, list) else (printed, None)
    ours, ours_std = row[name], row[f"{name}_std"]
    notes = (row["note"], CAVEATS.get((artefact, row["dataset"], quantity)))
    spread = None if ours_std is None or paper_std is None else math.hypot(ours_std, paper_std)
    return {
        **{key: row[key] for key in SETTING},
        "artefact": artefact,
        "quantity": quantity,
        "ours": ours,
        "ours_std": ours_std,
        "paper": paper,
        "paper_std": paper_std,
        "abs_diff": None if ours is None else abs(ours - paper),
        "z": (ours - paper) / spread if ours is not None and spread else None,
        "note": "; ".join(filter(None, notes)) or None,
    }

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

TABLE5 = {
    "mtan": "MTAN",
    "mtanet": "MTANet",
    "mtl-oca": "MTL-OCA",
    "mti-net": "MTI-Net",
    "densemtl": "DenseMTL",
    "btinet": "BTI-Net",
}
TABLE6 = {
    "unet": "U-Net",
    "attention-unet": "Att-U-Net",
    "unetpp": "UNet++",
    "transunet": "TransUNet",
    "swin-unet": "Swin-UNet",
    "missformer": "MISSFormer",
    "btinet": "BTI-Net",
}
"""Our name of a method -> its key in reference.yaml, in the paper's order."""

RANDOM_START = {
    "transunet": "its transformer starts from random weights, the authors' from ImageNet's",
    "swin-unet": "starts from random weights, the authors' from ImageNet's",
    "taskprompter": "its transformer starts from random weights, the authors' from ImageNet's",
}
"""Methods that have less to start from here than their authors gave them (btinet/models/baselines)."""

IMAGE_LEVEL_SPLIT = "the paper's 1503 images are an image-level split, which shares lesions with training"
LESION_WISE = "the paper's Table A15 implies 77.8 on the lesion-wise split"
BRISC_ERRORS = "the paper's Table A10 has 14 errors, which allow at most 98.6"
CAVEATS = {
    ("A17", "busi", "dice"): "the printed Dice exceeds what the printed precision and recall allow",
    ("A17", "ham10000", "n"): IMAGE_LEVEL_SPLIT,
    ("A18", "ham10000", "n"): IMAGE_LEVEL_SPLIT,
    ("A18", "ham10000", "accuracy"): LESION_WISE,
    ("A18", "brisc2025", "accuracy"): BRISC_ERRORS,
    **{
        ("3", "brisc2025", f"{detector} {metric}"): "the paper counts the 860 images with a tumour only"
        for detector in TABLE3_DETECTORS
        for metric in DETECTION
    },
    **{
        (artefact, "ham10000", f"{method} iou"): IMAGE_LEVEL_SPLIT
        for artefact, methods in (("5", TABLE5), ("6", TABLE6))
        for method in methods
    },
    **{
        ("5", dataset, f"{method} accuracy"): f"three runs on {n} images cannot have the paper's mean accuracy"
        for dataset, n in (("busi", "117"), ("brisc2025", "1,000"))
        for method in TABLE5
        if method != "btinet"
    },
    ("5", "ham10000", "btinet accuracy"): LESION_WISE,
    ("5", "brisc2025", "btinet accuracy"): BRISC_ERRORS,
    ("6", "brisc2025", "missformer iou"): "the paper has it above MTI-Net and DenseMTL here, and says it is below",
}
"""(artefact, dataset, quantity) -> what is wrong with the printed value (paper notes 0.3 to 0.6, B29)."""

COMPARISON = pa.schema(
    [
        pa.field("artefact", pa.string()),
        *(RUN.field(name) for name in SETTING),
        pa.field("quantity", pa.string()),
        *(pa.field(name, pa.float64()) for name in ("ours", "ours_std", "paper", "paper_std", "abs_diff", "z")),
        pa.field("note", pa.string()),
    ]
)


def _methods_schema(*quantities: str) -> pa.Schema:
    columns = ("{}", "{}_std", "paper_{}", "paper_{}_std", "{}_difference")
    return pa.schema(
        [
            *(RUN.field(name) for name in SETTING),
            pa.field("seeds", pa.int32()),
            *(pa.field(column.format(name), pa.float64()) for name in quantities for column in columns),
            pa.field("note", pa.string()),
        ]
    )


JOINT_METHODS = _methods_schema("iou", "accuracy")
SEGMENTATION_METHODS = _methods_schema("iou")


def comparison(tables: dict[str, pa.Table]) -> pa.Table:
    """BTI-Net's cells of Tables A17, A18, 2 and 3 for the paper's datasets, each beside the printed value.

    Units are the printed ones. ``z`` = (ours - paper) / sqrt(ours_std^2 + paper_std^2) (paper notes 5d), null
    where either deviation is unknown or both are 0; Tables 2 and 3 are printed without deviations. ``note``
    has what stands in the way of comparing a cell.
    """
    return pa.Table.from_pylist(list(_cells(tables)), COMPARISON)


def table5(tables: dict[str, pa.Table]) -> pa.Table:
    """Table 5: IoU and accuracy of the methods that do both, in percent, each beside the printed value.

    One row per dataset and method: the paper's methods in its order, then those that it does not compare, without
    printed values. Variants of BTI-Net are left out; there are no rows where this leaves a single method.
    ``*_difference`` = ours - paper, in points. ``note`` has what stands in the way of comparing a row.
    """
    printed = {
        key: {"iou": values["iou"], "accuracy": values["acc"]} for key, values in _printed("table5_joint", TABLE5)
    }
    rows = [row for row in _full_methods(tables) if row["accuracy"] is not None]
    return _beside_paper("5", rows, TABLE5, printed, JOINT_METHODS)


def table6(tables: dict[str, pa.Table]) -> pa.Table:
    """Table 6: IoU of BTI-Net and of the methods that only segment, laid out as :func:`table5`.

    Joint methods, which the paper's text announces for this table and the table does not have (paper notes B41),
    follow. There are no rows where none of the methods only segments.
    """
    printed = {key: {"iou": values} for key, values in _printed("table6_segmentation_iou", TABLE6)}
    rows = _full_methods(tables)
    if all(row["accuracy"] is not None for row in rows):
        rows = []
    return _beside_paper("6", rows, TABLE6, printed, SEGMENTATION_METHODS)


def _printed(table: str, methods: dict[str, str]) -> Iterator[tuple[tuple[str, str], Any]]:
    """(dataset, method) in our names, and what the paper's table has there."""
    paper = _reference()[table]
    for dataset, column in PAPER_DATASETS.items():
        for method, row in methods.items():
            yield (dataset, method), paper[row][column]


def _full_methods(tables: dict[str, pa.Table]) -> list[dict[str, Any]]:
    """Rows of the segmentation table, without BTI-Net's ablations, each with the setting's accuracy."""
    accuracies = {
        tuple(row[name] for name in SETTING): {name: row[name] for name in ("accuracy", "accuracy_std")}
        for row in tables["classification"].to_pylist()
    }
    return [
        row | accuracies[tuple(row[name] for name in SETTING)]
        for row in tables["segmentation"].to_pylist()
        if row["variant"] == "full"
    ]


def _beside_paper(
    artefact: str,
    rows: list[dict[str, Any]],
    methods: dict[str, str],
    printed: dict[tuple[str, str], dict[str, list[float]]],
    schema: pa.Schema,
) -> pa.Table:
    """Rows by dataset and in the order of ``methods``, others last, with the columns about the paper added."""
    if len({row["method"] for row in rows}) < 2:
        return schema.empty_table()
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    ranks = {method: rank for rank, method in enumerate(methods)}
    rows = sorted(rows, key=lambda row: (datasets.index(row["dataset"]), ranks.get(row["method"], len(ranks))))
    for row in rows:
        dataset, method = row["dataset"], row["method"]
        notes = [row["note"], RANDOM_START.get(method)]
        if method not in methods:
            notes.append(f"not in the paper's Table {artefact}")
        for name, (paper, paper_std) in printed.get((dataset, method), {}).items():
            row[f"paper_{name}"], row[f"paper_{name}_std"] = paper, paper_std
            row[f"{name}_difference"] = None if row[name] is None else row[name] - paper
            notes.append(CAVEATS.get((artefact, dataset, f"{method} {name}")))
        row["note"] = "; ".join(filter(None, notes)) or None
    return pa.Table.from_pylist(rows, schema)


def _reference() -> dict[str, Any]:
    """The paper's numbers."""
    content: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("reference.yaml").read_text())
    return content


def _cells(tables: dict[str, pa.Table]) -> Iterator[dict[str, Any]]:
    paper = _reference()
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

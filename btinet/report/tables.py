"""Analysis tables -> what the template lays out: one small function per table.

Cells are means over seeds ± the sample standard deviation, with the paper's value beneath where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from btinet.analysis.runs import SETTING
from btinet.evaluation.schema import LEVELS

NOTHING = "–"
SIGNAL_LABELS = {
    "mc": "MC dropout",
    "one_minus_conf": "1 − conf",
    "w_seg": "w_seg",
    "w_clf": "w_clf",
    "neg_delta": "−delta",
    "neg_align": "−align",
    "seg_energy": "E_seg",
    "clf_energy": "E_clf",
}
DETECTOR_LABELS = {
    "mc": "MC dropout",
    "one_minus_conf": "1 − conf",
    "upa_oracle": "Best UPA signal on test (oracle)",
    "upa_validation": "UPA signal chosen on validation",
}

Row = dict[str, Any]
Printed = dict[tuple[Any, ...], str]
"""(artefact, *SETTING, quantity) -> the paper's value, formatted."""


@dataclass(frozen=True)
class Cell:
    text: str
    spread: str = ""
    """Standard deviation."""
    beneath: str = ""
    strong: bool = False
    words: bool = False
    """Prose, not a number."""


@dataclass(frozen=True)
class HtmlTable:
    """A table as the template lays it out."""

    caption: str
    heads: list[str]
    """Names of the leading columns, whose cells are row headers."""
    columns: list[str]
    rows: list[tuple[list[Cell], list[Cell]]]
    """Each row's headers and values."""
    spans: list[tuple[str, int]] = field(default_factory=list)
    """(label, number of value columns) of a header row above ``columns``; empty for none."""
    notes: list[str] = field(default_factory=list)


def printed_values(comparison_: pa.Table) -> Printed:
    """The paper's numbers by the cell they belong to."""
    values = {}
    for row in comparison_.to_pylist():
        digits = _digits(row["artefact"], row["quantity"])
        key = (row["artefact"], *(row[name] for name in SETTING), row["quantity"])
        values[key] = f"{_number(row['paper'], digits)} {_spread(row['paper_std'], digits)}".strip()
    return values


def summary(segmentation_: pa.Table, classification_: pa.Table, printed: Printed) -> HtmlTable:
    """IoU and accuracy of every setting."""
    accuracy = {_setting(row): row for row in classification_.to_pylist()}
    rows = []
    for row in segmentation_.to_pylist():
        iou = _cell(row, "iou", 1, printed, "A17")
        rows.append(
            (
                _heads(row),
                [_count(row, "seeds"), iou, _cell(accuracy[_setting(row)], "accuracy", 1, printed, "A18")],
            )
        )
    return HtmlTable(
        "Mean ± standard deviation over seeds. IoU is per image, over test images that have a lesion; "
        "accuracy is over all test images.",
        ["Dataset", "Method"],
        ["Seeds", "IoU, %", "Accuracy, %"],
        rows,
    )


def segmentation(table: pa.Table, printed: Printed) -> HtmlTable:
    """Table A17."""
    metrics = ("iou", "dice", "median_dice", "precision", "recall")
    rows = [
        (
            _heads(row),
            [
                _count(row, "n", printed, "A17"),
                *(_cell(row, metric, 1, printed, "A17") for metric in metrics),
                _count(row, "n_empty"),
                _cell(row, "empty_area", 0),
                _cell(row, "empty_hit", 1),
            ],
        )
        for row in table.to_pylist()
    ]
    return HtmlTable(
        "Table A17. Segmentation of test images that have a lesion, per image, then averaged, in percent; "
        "and the area predicted on images without one (its mean, and how many have any), which the paper "
        "does not score.",
        ["Dataset", "Method"],
        ["n", "IoU", "Dice", "Median Dice", "Precision", "Recall", "n", "Area, px", "Any, %"],
        rows,
        spans=[("Images with a lesion", 6), ("Images without", 3)],
        notes=_notes(table),
    )


def classification(table: pa.Table, printed: Printed) -> HtmlTable:
    """Table A18."""
    rows = [
        (
            _heads(row),
            [
                _count(row, "n", printed, "A18"),
                _cell(row, "accuracy", 1, printed, "A18"),
                *(_cell(row, metric, 2, printed, "A18") for metric in ("precision", "recall", "f1")),
            ],
        )
        for row in table.to_pylist()
    ]
    return HtmlTable(
        "Table A18. Classification of all test images. Precision, recall and F1 are averaged over classes by support.",
        ["Dataset", "Method"],
        ["n", "Accuracy, %", "Precision", "Recall", "F1"],
        rows,
        notes=_notes(table),
    )


def table2(table: pa.Table, printed: Printed) -> HtmlTable:
    """Table 2."""
    rows = []
    for group in _groups(table):
        scores = {row["level"] or "mc": row for row in group}
        cells = [_count(group[0], "n"), _count(group[0], "n_failures")]
        for detector in ("mc", *LEVELS):
            for metric in ("auroc", "auprc"):
                row, reference = scores[detector], scores["mc"][metric]
                beats = None not in (row[metric], reference) and row[metric] > reference
                cells.append(_cell(row, metric, 3, printed, "2", f"{detector} {metric}", strong=beats))
        rows.append((_heads(group[0]), cells))
    return HtmlTable(
        "Table 2. Detecting failed segmentations (IoU < 0.5, test images that have a lesion) by w_seg at "
        "each decoder level and by Monte Carlo dropout. Bold: beats MC dropout.",
        ["Dataset", "Method"],
        ["n", "Failures", *["AUROC", "AUPRC"] * 5],
        rows,
        spans=[("", 2), ("MC dropout", 2), *((f"w_seg {level}", 2) for level in LEVELS)],
        notes=_notes(table),
    )


def table3(table: pa.Table, printed: Printed) -> HtmlTable:
    """Table 3."""
    rows = []
    for group in _groups(table):
        cells = [_count(group[0], "n"), _count(group[0], "n_failures")]
        for row in group:
            detector = row["detector"]
            if detector.startswith("upa"):
                chosen = f"{SIGNAL_LABELS[row['signal']]} {row['level']}" if row["signal"] else NOTHING
                cells.append(Cell(chosen, words=True))
            for metric in ("auroc", "auprc"):
                cells.append(_cell(row, metric, 3, printed, "3", f"{detector} {metric}"))
        rows.append((_heads(group[0]), cells))
    two, three = ["AUROC", "AUPRC"], ["Signal", "AUROC", "AUPRC"]
    return HtmlTable(
        "Table 3. Detecting wrong classifications (all test images). The oracle is the UPA signal with the "
        "highest AUROC on the test set itself, as the paper selects it; beside it, the one that the "
        "validation split selects.",
        ["Dataset", "Method"],
        ["n", "Failures", *two, *two, *three, *three],
        rows,
        spans=[("", 2), *((label, 2 + name.startswith("upa")) for name, label in DETECTOR_LABELS.items())],
        notes=_notes(table),
    )


def signals(detection: pa.Table) -> HtmlTable:
    """AUROC of every signal at every level on test (the layout of Tables A3 and A4)."""
    primary = pc.field("population") == pc.if_else(pc.field("task") == "seg", "positives", "all")
    shown = pc.field("signal").isin(list(SIGNAL_LABELS))
    test = detection.filter((pc.field("split") == "test") & primary & shown)
    rows = []
    tasks = {"seg": "segmentation", "clf": "classification"}
    for group in _groups(test, "task", "signal"):
        scores = {row["level"]: row for row in group}
        heads = [*_heads(group[0]), Cell(tasks[group[0]["task"]]), Cell(SIGNAL_LABELS[group[0]["signal"]])]
        absent = {"auroc": None, "auroc_std": None}
        rows.append((heads, [_cell(scores.get(level, absent), "auroc", 3) for level in (None, *LEVELS)]))
    return HtmlTable(
        "AUROC of every signal for each kind of failure, test split, with the paper's signs: below 0.5 means "
        "that failures score lower.",
        ["Dataset", "Method", "Failure of", "Signal"],
        ["Without level", *LEVELS],
        rows,
    )


def table5(table: pa.Table) -> HtmlTable:
    """Table 5."""
    return _methods(
        table,
        ("iou", "accuracy"),
        "Table 5. Joint methods: IoU of test images that have a lesion, per image, and accuracy of all test images, in "
        "percent; mean ± standard deviation over seeds, beside the paper's.",
    )


def table6(table: pa.Table) -> HtmlTable:
    """Table 6."""
    return _methods(
        table,
        ("iou",),
        "Table 6. Segmentation methods: IoU of test images that have a lesion, per image, in percent; mean ± standard "
        "deviation over seeds, beside the paper's.",
    )


def _methods(table: pa.Table, quantities: tuple[str, ...], caption: str) -> HtmlTable:
    labels = {"iou": "IoU", "accuracy": "Accuracy"}
    rows = []
    for row in table.to_pylist():
        cells = [_count(row, "seeds")]
        for name in quantities:
            cells += [_cell(row, name, 2), _cell(row, f"paper_{name}", 2), Cell(_signed(row[f"{name}_difference"]))]
        rows.append((_heads(row), [*cells, Cell(row["note"] or "", words=True)]))
    return HtmlTable(
        caption,
        ["Dataset", "Method"],
        ["Seeds", *["Ours", "Paper", "Difference"] * len(quantities), "Note"],
        rows,
        spans=[("", 1), *((labels[name], 3) for name in quantities), ("", 1)],
    )


def comparison(table: pa.Table) -> HtmlTable:
    """Every cell of ours that the paper prints."""
    rows = []
    for row in table.to_pylist():
        digits = _digits(row["artefact"], row["quantity"])
        cells = [
            Cell(_number(row["ours"], digits), _spread(row["ours_std"], digits)),
            Cell(_number(row["paper"], digits), _spread(row["paper_std"], digits)),
            Cell(_number(row["abs_diff"], digits)),
            Cell(_number(row["z"], 1)),
            Cell(row["note"] or "", words=True),
        ]
        rows.append(([*_heads(row), Cell(row["artefact"]), Cell(row["quantity"].replace("_", " "))], cells))
    return HtmlTable(
        "BTI-Net here beside the paper. z = difference / root of the summed variances over seeds, where both "
        "are known.",
        ["Dataset", "Method", "Table", "Quantity"],
        ["Ours", "Paper", "|Difference|", "z", "Note"],
        rows,
    )


def runs(segmentation_runs: pa.Table, classification_runs: pa.Table) -> HtmlTable:
    """Every run by itself."""
    accuracy = dict(zip(*(classification_runs[name].to_pylist() for name in ("run_id", "accuracy")), strict=True))
    rows = [
        (
            [Cell(row["run_id"])],
            [
                Cell(str(row["seed"])),
                Cell(str(row["stage"])),
                Cell(_number(row["iou"], 2)),
                Cell(_number(row["dice"], 2)),
                Cell(_number(accuracy[row["run_id"]], 2)),
            ],
        )
        for row in segmentation_runs.to_pylist()
    ]
    columns = ["Seed", "Stage", "IoU, %", "Dice, %", "Accuracy, %"]
    return HtmlTable("The runs behind this page, on the test split.", ["Run"], columns, rows)


def _groups(table: pa.Table, *within: str) -> Iterator[list[Row]]:
    """Rows that share their setting and ``within``, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in table.to_pylist():
        groups.setdefault((*_setting(row), *(row[name] for name in within)), []).append(row)
    yield from groups.values()


def _setting(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in SETTING)


def _heads(row: Row) -> list[Cell]:
    return [
        Cell(row["dataset"]),
        Cell(row["method"], beneath=f"{row['variant']} · {row['preset']} · stage {row['stage']}"),
    ]


def _cell(
    row: Row,
    name: str,
    digits: int,
    printed: Printed | None = None,
    artefact: str = "",
    quantity: str = "",
    strong: bool = False,
) -> Cell:
    paper = printed.get((artefact, *_setting(row), quantity or name)) if printed else None
    beneath = f"paper {paper}" if paper else ""
    return Cell(_number(row[name], digits), _spread(row[f"{name}_std"], digits), beneath, strong)


def _count(row: Row, name: str, printed: Printed | None = None, artefact: str = "") -> Cell:
    """A number of samples; its mean and deviation where it differs between seeds."""
    paper = printed.get((artefact, *_setting(row), name)) if printed else None
    value, std = row[name], row.get(f"{name}_std")
    beneath = f"paper {paper}" if paper else ""
    return Cell(_number(value, 1), _spread(std, 1), beneath) if std else Cell(_number(value, 0), "", beneath)


def _digits(artefact: str, quantity: str) -> int:
    """Decimals that the paper prints."""
    if quantity.split()[-1] in ("n", "n_wrong", "n_correct"):
        return 0
    if artefact in ("4", "5", "6", "A18"):
        return 1 if quantity == "accuracy" else 2
    return 1 if artefact == "A17" else 3


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _signed(value: float | None) -> str:
    return NOTHING if value is None else f"{value:+.2f}".replace("-", "−")


def _spread(std: float | None, digits: int) -> str:
    return "" if std is None else f"± {std:.{digits}f}"


def _notes(table: pa.Table) -> list[str]:
    """Why cells are empty: each reason once, with the settings it holds for."""
    settings: dict[str, list[str]] = {}
    for row in table.to_pylist():
        if row["note"]:
            name = f"{row['dataset']} {row['method']} {row['variant']}"
            where = settings.setdefault(row["note"], [])
            if name not in where:
                where.append(name)
    return [f"{', '.join(where)}: {note}." for note, where in settings.items()]

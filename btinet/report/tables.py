"""Analysis tables -> what the template lays out: one small function per table.

Cells are means over seeds ± the sample standard deviation, with the paper's value beneath where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from btinet.analysis.paper import TUMOURS_ONLY
from btinet.analysis.runs import SETTING
from btinet.evaluation.schema import LEVELS

NOTHING = "–"
SIGNAL_LABELS = {
    "mc": "MC dropout",
    "mc_entropy": "MC entropy",
    "mc_mi": "MC mutual information",
    "mc_var": "MC variance",
    "mc_lesion": "MC variance over the lesion",
    "one_minus_conf": "1 − conf",
    "one_minus_mask_conf": "1 − mask confidence",
    "w_seg": "w_seg",
    "w_clf": "w_clf",
    "neg_delta": "−delta",
    "neg_align": "−align",
    "seg_energy": "E_seg",
    "clf_energy": "E_clf",
    "neg_delta_mean": "−delta, mean of levels",
    "neg_delta_weighted_oracle": "−delta, levels weighted by AUROC (oracle)",
    "neg_delta_weighted_validation": "−delta, levels weighted by AUROC on validation",
}
DETECTOR_LABELS = {
    "mc": "MC dropout",
    "one_minus_conf": "1 − conf",
    "upa_oracle": "Best UPA signal on test (oracle)",
    "upa_validation": "UPA signal chosen on validation",
}
CHOICE_LABELS = {
    "mc": "MC dropout",
    "mc_lesion": "MC dropout, over the lesion",
    "one_minus_mask_conf": "1 − mask confidence",
    "mean": "−delta, mean of levels",
    "combined_oracle": "−delta, levels weighted by AUROC (oracle)",
    "combined_validation": "−delta, levels weighted by AUROC on validation",
    "weighted_oracle": "−delta, levels weighted by AUROC (oracle)",
    "weighted_validation": "−delta, levels weighted by AUROC on validation",
    "best_oracle": "Best signal and level (oracle)",
    "best_validation": "Signal and level chosen on validation",
}
TASK_LABELS = {"seg": "segmentation", "clf": "classification"}
QUANTITY_LABELS = {
    "seg_energy": "E_seg",
    "mc_seg": "MC variance",
    "mc_mi": "MC mutual information",
    "mc_entropy": "MC entropy",
    "conf": "confidence",
    "iou": "IoU",
}
VERDICTS = {"holds": "good", "does not hold": "bad", "cannot be told": ""}
METRIC_LABELS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "aurc": "AURC",
    "e_aurc": "E-AURC",
    "augrc": "AUGRC",
    "fpr95": "FPR@95TPR",
    "ece": "ECE",
    "brier": "Brier",
}

Row = dict[str, Any]
Rows = list[tuple[list["Cell"], list["Cell"]]]
Printed = dict[tuple[Any, ...], str]
"""(artefact, *SETTING, quantity) -> the paper's value, formatted."""


@dataclass(frozen=True)
class Cell:
    text: str
    spread: str = ""
    """Standard deviation."""
    beneath: str = ""
    interval: str = ""
    """95 % bootstrap interval."""
    strong: bool = False
    tone: str = ""
    """``good`` or ``bad``: a colour, beside what the words say."""
    words: bool = False
    """Prose, not a number."""


@dataclass(frozen=True)
class HtmlTable:
    """A table as the template lays it out."""

    caption: str
    heads: list[str]
    """Names of the leading columns, whose cells are row headers."""
    columns: list[str]
    rows: Rows
    """Each row's headers and values."""
    spans: list[tuple[str, int]] = field(default_factory=list)
    """(label, number of value columns) of a header row above ``columns``; empty for none."""
    notes: list[str] = field(default_factory=list)
    name: str = ""
    """The analysis table it shows, which can then be downloaded."""
    latex_name: str = ""
    """What its LaTeX file is called, if not like that analysis table, which another one shows, too."""
    links: list[Any] = field(default_factory=list)
    """Downloads (downloads.Link)."""


def printed_values(comparison_: pa.Table) -> Printed:
    """The paper's numbers by the cell they belong to; without those of images with a tumour, where a cell is of all."""
    values = {}
    for row in comparison_.to_pylist():
        if row["note"] and TUMOURS_ONLY in row["note"]:
            continue
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
        name="segmentation",
        latex_name="summary",
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
        name="segmentation",
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
        name="classification",
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
        name="table2",
    )


def table3(table: pa.Table, printed: Printed) -> HtmlTable:
    """Table 3."""
    rows = []
    for group in _groups(table):
        cells = [_count(group[0], "n"), _count(group[0], "n_failures")]
        for row in group:
            detector = row["detector"]
            if detector.startswith("upa"):
                chosen = f"{signal_label(row['signal'])} {row['level']}" if row["signal"] else NOTHING
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
        name="table3",
    )


def claims(table: pa.Table) -> HtmlTable:
    """The paper's statements, each with what these runs say about it; those that could be told first."""
    rows = [
        (
            [Cell(row["claim"])],
            [
                Cell(row["verdict"], words=True, strong=True, tone=VERDICTS[row["verdict"]]),
                Cell(row["dataset"] or "", words=True),
                Cell(row["numbers"] or "", words=True),
                Cell(row["reason"] or "", words=True),
                Cell(row["source"] or "", words=True),
            ],
        )
        for row in sorted(table.to_pylist(), key=lambda row: list(VERDICTS).index(row["verdict"]))
    ]
    return HtmlTable(
        "What the paper says, and whether it holds in these runs.",
        ["Claim"],
        ["Verdict", "Dataset", "Numbers", "Reason", "Where"],
        rows,
        name="claims",
    )


def by_level(table: pa.Table, name: str, caption: str) -> HtmlTable:
    """Tables A3 and A4: a row a signal, a column a level; in bold what is best at its level."""
    rows = []
    for group in _groups(table, "signal"):
        scores = {row["level"]: row for row in group}
        absent = dict.fromkeys(("auroc", "auroc_std", "auroc_low", "auroc_high", "best_of_level"))
        cells = []
        for level in (None, *LEVELS):
            row = scores.get(level, absent)
            cells.append(_cell(row, "auroc", 3, strong=bool(row["best_of_level"])))
        rows.append(([*_heads(group[0]), Cell(signal_label(group[0]["signal"]))], cells))
    rows = _known(rows)
    columns = ["Without level", *LEVELS]
    return HtmlTable(caption, ["Dataset", "Method", "Signal"], columns, rows, notes=_notes(table), name=name)


def choices(table: pa.Table, name: str, caption: str) -> HtmlTable:
    """Tables A2 and A5: a row a detector."""
    rows = []
    for row in table.to_pylist():
        heads = [*_heads(row), Cell(CHOICE_LABELS[row["detector"]])]
        chosen = _score(row) if row["signal"] else ""
        is_choice = row["detector"].startswith("best")
        cells = [Cell(chosen if is_choice and chosen else NOTHING, words=True)]
        rows.append((heads, [*cells, *(_cell(row, metric, 3) for metric in ("auroc", "auprc", "ece"))]))
    rows = _known(rows)
    columns = ["Signal", "AUROC", "AUPRC", "ECE"]
    return HtmlTable(caption, ["Dataset", "Method", "Detector"], columns, rows, notes=_notes(table), name=name)


def correlations(table: pa.Table) -> HtmlTable:
    """Tables A6, A11, A16."""
    rows = []
    for group in _groups(table, "x", "y", "population"):
        levels = {row["level"]: row for row in group}
        first = group[0]
        pair = " ~ ".join(QUANTITY_LABELS.get(str(first[name]), str(first[name])) for name in ("x", "y"))
        cells = [_cell(levels[level], "rho", 3, strong=bool(levels[level]["seeds_marked"])) for level in LEVELS]
        rows.append(([*_heads(first), Cell(pair), Cell(first["population"])], cells))
    return HtmlTable(
        "Tables A6, A11, A16. Spearman's ρ on the test split. Bold: |ρ| > 0.3 and p < 0.05 in at least one run.",
        ["Dataset", "Method", "Pair", "Samples"],
        list(LEVELS),
        _known(rows),
        notes=_notes(table),
        name="correlations",
    )


def wrong_and_correct(table: pa.Table) -> HtmlTable:
    """Tables A10, A15."""
    return _plain(
        table.filter(pc.field("difference").is_valid()),
        "gate_wrong_correct_runs",
        "Tables A10, A15. Mean delta = w_clf − w_seg of wrongly and of correctly classified test images, run by run; "
        "t and p of the pooled t-test.",
        {"seed": "Seed", "population": "Samples", "level": "Level"},
        {
            "n_wrong": ("n wrong", 0),
            "mean_wrong": ("Mean δ wrong", 4),
            "n_correct": ("n correct", 0),
            "mean_correct": ("Mean δ correct", 4),
            "difference": ("Difference", 4),
            "t": ("t", 2),
            "p": ("p", 4),
        },
    )


def detection(table: pa.Table) -> HtmlTable:
    """Every score and metric on test, beyond the paper."""
    test = table.filter((pc.field("split") == "test") & pc.field("auroc").is_valid())
    rows = []
    for row in test.to_pylist():
        signal = _score(row)
        heads = [*_heads(row), Cell(TASK_LABELS[row["task"]]), Cell(row["population"]), Cell(signal)]
        rows.append((heads, [_cell(row, metric, 3) for metric in METRIC_LABELS]))
    return HtmlTable(
        "Every score for each kind of failure on the test split, with the paper's signs. AUROC and AUPRC: higher is "
        "better; all others: lower is better. An AUROC below 0.5 means that failures score lower.",
        ["Dataset", "Method", "Failure of", "Samples", "Score"],
        list(METRIC_LABELS.values()),
        rows,
        name="detection",
    )


def signal_tests(table: pa.Table) -> HtmlTable:
    """DeLong's test of each score against Monte Carlo dropout."""
    rows = []
    for row in table.filter(pc.field("auroc").is_valid()).to_pylist():
        signal = _score(row)
        heads = [Cell(row["dataset"]), Cell(row["method"]), Cell(str(row["seed"])), Cell(TASK_LABELS[row["task"]])]
        numbers = [("auroc", 3), ("auroc_mc", 3), ("difference", 3), ("z", 2), ("p", 4), ("p_holm", 4)]
        cells = [_cell(row, name, digits) for name, digits in numbers]
        rows.append(([*heads, Cell(row["population"]), Cell(signal), Cell(signal_label(row["reference"]))], cells))
    return HtmlTable(
        "Each score's AUROC against that of Monte Carlo dropout on the same images: DeLong's test, run by run; Holm's "
        "correction is over the scores of a run and task.",
        ["Dataset", "Method", "Seed", "Failure of", "Samples", "Score", "Against"],
        ["AUROC", "MC dropout", "Difference", "z", "p", "p, Holm"],
        rows,
        name="signal_tests",
    )


def methods_tests(table: pa.Table) -> HtmlTable:
    """Methods and variants against the full BTI-Net."""
    rows = []
    for row in table.to_pylist():
        heads = [Cell(row["dataset"]), Cell(row["method"], beneath=row["variant"]), Cell(row["quantity"])]
        numbers = [("reference", 2), ("value", 2), ("difference", 2), ("p", 4), ("p_holm", 4)]
        cells = [Cell(str(row["seeds"])), Cell(str(row["n"])), *(_cell(row, name, digits) for name, digits in numbers)]
        rows.append((heads, [*cells, Cell(row["note"] or "", words=True)]))
    return HtmlTable(
        "Every method and variant against the full BTI-Net on the same seeds and test images, in percent; p by a "
        "paired bootstrap over seeds and images, two-sided, with Holm's correction over the methods.",
        ["Dataset", "Method", "Quantity"],
        ["Seeds", "n", "BTI-Net", "Value", "Difference", "p", "p, Holm", "Note"],
        rows,
        name="methods_tests",
    )


def rank_agreement(table: pa.Table) -> HtmlTable:
    """Kendall's tau between our columns and the paper's."""
    rows = [
        (
            [Cell(row["artefact"]), Cell(row["dataset"] or ""), Cell(row["column"])],
            [
                Cell(str(row["cells"])),
                Cell(_number(row["tau"], 2)),
                Cell(_number(row["p"], 3)),
                Cell(row["note"] or "", words=True),
            ],
        )
        for row in table.to_pylist()
    ]
    return HtmlTable(
        "Do our numbers rank as the paper's do? Kendall's τ-b, column by column.",
        ["Table", "Dataset", "Column"],
        ["Cells", "τ", "p", "Note"],
        rows,
        name="rank_agreement",
    )


def table4(table: pa.Table) -> HtmlTable:
    """Table 4."""
    rows = []
    marks = {True: "✓", False: "–", None: ""}
    for row in table.to_pylist():
        cells = [Cell(marks[row[part]], words=True) for part in ("mscf", "tim", "upa")] + [_count(row, "seeds")]
        for name in ("iou", "accuracy"):
            change = Cell(_signed(row[f"{name}_change"]), interval=_interval(row, f"{name}_change", 2))
            cells += [_cell(row, name, 2), _cell(row, f"paper_{name}", 2), change]
        rows.append((_heads(row), [*cells, Cell(row["note"] or "", words=True)]))
    return HtmlTable(
        "Table 4. What BTI-Net's parts are worth: IoU of test images that have a lesion, per image, and accuracy of "
        "all test images, in percent; change against the full network on the same seeds.",
        ["Dataset", "Variant"],
        ["MSCF", "TIM", "UPA", "Seeds", *["Ours", "Paper", "Change"] * 2, "Note"],
        rows,
        spans=[("", 4), ("IoU", 3), ("Accuracy", 3), ("", 1)],
        name="table4",
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
        name="table5" if "accuracy" in quantities else "table6",
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
        name="comparison",
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
    return HtmlTable("The runs behind this page, on the test split.", ["Run"], columns, rows, name="segmentation_runs")


def _plain(
    table: pa.Table, name: str, caption: str, heads: dict[str, str], columns: dict[str, tuple[str, int]]
) -> HtmlTable:
    """A row of the table as a row: dataset, method, then columns by name, each with its label (and decimals)."""
    rows = [
        (
            [*_heads(row), *(Cell(str(row[head])) for head in heads)],
            [_cell(row, column, digits) for column, (_, digits) in columns.items()],
        )
        for row in table.to_pylist()
    ]
    labels = [label for label, _ in columns.values()]
    return HtmlTable(caption, ["Dataset", "Method", *heads.values()], labels, rows, notes=_notes(table), name=name)


def _known(rows: Rows) -> Rows:
    """Without the rows that have no value at all; the notes beneath say why there is none."""
    return [(heads, cells) for heads, cells in rows if any(cell.text != NOTHING for cell in cells)]


def _groups(table: pa.Table, *within: str) -> Iterator[list[Row]]:
    """Rows that share their setting and ``within``, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in table.to_pylist():
        groups.setdefault((*_setting(row), *(row[name] for name in within)), []).append(row)
    yield from groups.values()


def signal_label(name: str) -> str:
    return SIGNAL_LABELS.get(name, name)


def _score(row: Row) -> str:
    return f"{signal_label(row['signal'])} {row['level'] or ''}".strip()


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
    spread = _spread(row.get(f"{name}_std"), digits)
    return Cell(_number(row[name], digits), spread, beneath, _interval(row, name, digits), strong)


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
    return NOTHING if value is None else f"{value:.{digits}f}".replace("-", "−")


def _signed(value: float | None) -> str:
    return NOTHING if value is None else f"{value:+.2f}".replace("-", "−")


def _interval(row: Row, name: str, digits: int) -> str:
    low, high = (row.get(f"{name}_{side}") for side in ("low", "high"))
    return "" if low is None or high is None else f"[{low:.{digits}f}, {high:.{digits}f}]".replace("-", "−")


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

"""Methods and variants beside each other and beside the paper's: Tables 4, 5 and 6, and paired tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from btinet.analysis.estimates import Estimates
from btinet.analysis.paper import CAVEATS, PAPER_DATASETS, TABLE4, TABLE5, TABLE6, reference
from btinet.analysis.resampling import p_value
from btinet.analysis.schemas import SETTING
from btinet.analysis.significance import holm
from btinet.analysis.summaries import Row, join_notes

RANDOM_START = {
    "transunet": "unless transformer_weights were given, its transformer started from random weights",
    "swin-unet": "unless transformer_weights were given, it started from random weights",
    "taskprompter": "unless transformer_weights were given, its transformer started from random weights",
}
"""Methods whose authors start from ImageNet weights what here starts so only where the experiment gives them; the
predictions, all that the analysis reads, do not tell."""

FEW_SEEDS = 5
COPIED = ("", "_std", "_low", "_high")


def table4(segmentation: Sequence[Row], classification: Sequence[Row], estimates: Estimates) -> Iterator[Row]:
    """Table 4: the variants of BTI-Net where a dataset has several, beside what the paper prints for BUSI."""
    printed: dict[tuple[str, str], dict[str, Any]] = {}
    for parts, row in zip(TABLE4.values(), reference()["table4_ablation_BUSI"], strict=True):
        variant = next(name for name, value in TABLE4.items() if value == parts)
        printed["busi", variant] = {"iou": row["iou"], "accuracy": row["acc"]}
    change = reference()["ablation_text_BUSI"]["no_gate_regularisation_delta_iou"]
    printed["busi", "no-gate-loss"] = {"iou": [printed["busi", "full"]["iou"][0] + change, None]}
    rows = [row for row in _with_accuracy(segmentation, classification) if row["method"] == "btinet"]
    for row in _in_order(rows, "variant", TABLE4, several_within=("dataset", "preset")):
        variant = row["variant"]
        row.update(zip(("mscf", "tim", "upa"), TABLE4.get(variant, (None, None, None)), strict=True))
        notes = [row["note"], None if variant in TABLE4 else "not in the paper's Table 4"]
        if variant == "no-gate-loss" and row["dataset"] == "busi":
            notes[-1] = f"from the paper's text: {change:+.2f} IoU against the full network"
        for name, table in (("iou", "segmentation"), ("accuracy", "classification")):
            full = estimates.get(row, table, name, variant="full")
            own = estimates.get(row, table, name)
            summary = (own - full).summary() if own and full and variant != "full" else None
            for suffix in ("", "_low", "_high"):
                row[f"{name}_change{suffix}"] = summary[suffix] if summary else None
        notes.append(_set_printed(row, printed.get((row["dataset"], variant), {}), "4", variant))
        yield {**row, "note": join_notes(*notes)}


def table5(segmentation: Sequence[Row], classification: Sequence[Row]) -> Iterator[Row]:
    """Table 5: IoU and accuracy of the methods that do both, in percent, each beside the printed value.

    ``*_difference`` = ours - paper, in points. ``note`` has what stands in the way of comparing a row.
    """
    printed = {
        key: {"iou": values["iou"], "accuracy": values["acc"]} for key, values in _printed("table5_joint", TABLE5)
    }
    rows = [row for row in _full(segmentation, classification) if row["accuracy"] is not None]
    yield from _beside_paper("5", rows, TABLE5, printed)


def table6(segmentation: Sequence[Row], classification: Sequence[Row]) -> Iterator[Row]:
    """Table 6: IoU of BTI-Net and of the methods that only segment, laid out as :func:`table5`.

    Joint methods, which the paper's text announces for this table and the table does not have (paper notes B41),
    follow.
    """
    printed = {key: {"iou": values} for key, values in _printed("table6_segmentation_iou", TABLE6)}
    rows = _full(segmentation, classification)
    if any(row["accuracy"] is None for row in rows):
        yield from _beside_paper("6", rows, TABLE6, printed)


def methods_tests(segmentation: Sequence[Row], estimates: Estimates) -> Iterator[Row]:
    """Every other method and variant against the full BTI-Net of its dataset and preset."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in segmentation:
        if (row["method"], row["variant"]) == ("btinet", "full"):
            continue
        for table, name in (("segmentation", "iou"), ("segmentation", "dice"), ("classification", "accuracy")):
            other = estimates.get(row, table, name)
            full = estimates.get(row, table, name, method="btinet", variant="full")
            if other is None or full is None or not (common := full.seeds & other.seeds):
                continue
            difference = full - other
            summary = difference.summary()
            if summary[""] is None:
                continue
            found = {key: row[key] for key in ("dataset", "preset", "method", "variant")} | {"quantity": name}
            found |= {
                "seeds": len(common),
                "n": round(row["n"] if table == "segmentation" else row["n"] + row["n_empty"]),
            }
            found |= {"reference": full.on(common).mean, "value": other.on(common).mean}
            found |= {f"difference{suffix}": summary[suffix] for suffix in ("", "_low", "_high")}
            found["p"] = p_value(difference.resampled()) if summary["_low"] is not None else None
            found["note"] = _seeds_note(len(common))
            groups.setdefault((row["dataset"], row["preset"], name), []).append(found)
    for rows in groups.values():
        for row, p_holm in zip(rows, holm([row["p"] for row in rows]), strict=True):
            yield {**row, "p_holm": p_holm}


def _seeds_note(seeds: int) -> str | None:
    if seeds == 1:
        return "one seed: says nothing about how much trainings differ"
    return f"{seeds} seeds: how much trainings differ is known poorly" if seeds < FEW_SEEDS else None


def _printed(table: str, methods: dict[str, str]) -> Iterator[tuple[tuple[str, str], Any]]:
    """(dataset, method) in our names, and what the paper's table has there."""
    paper = reference()[table]
    for dataset, column in PAPER_DATASETS.items():
        for method, row in methods.items():
            yield (dataset, method), paper[row][column]


def _with_accuracy(segmentation: Sequence[Row], classification: Sequence[Row]) -> list[Row]:
    """Rows of the segmentation table, each with the setting's accuracy."""
    names = [f"accuracy{suffix}" for suffix in COPIED]
    accuracies = {tuple(row[name] for name in SETTING): {name: row[name] for name in names} for row in classification}
    return [row | accuracies[tuple(row[name] for name in SETTING)] for row in segmentation]


def _full(segmentation: Sequence[Row], classification: Sequence[Row]) -> list[Row]:
    """Without BTI-Net's ablations."""
    return [row for row in _with_accuracy(segmentation, classification) if row["variant"] == "full"]


def _beside_paper(
    artefact: str,
    rows: Sequence[Row],
    methods: dict[str, str],
    printed: dict[tuple[str, str], dict[str, Any]],
) -> Iterator[Row]:
    if len({row["method"] for row in rows}) < 2:
        return
    for row in _in_order(rows, "method", methods):
        method = row["method"]
        absent = None if method in methods else f"not in the paper's Table {artefact}"
        caveats = _set_printed(row, printed.get((row["dataset"], method), {}), artefact, method)
        yield {**row, "note": join_notes(row["note"], RANDOM_START.get(method), absent, caveats)}


def _set_printed(row: Row, printed: dict[str, Any], artefact: str, name: str) -> str | None:
    """Set the columns about the paper; returns what is known to be wrong with its values."""
    caveats = []
    for quantity, (paper, paper_std) in printed.items():
        row[f"paper_{quantity}"], row[f"paper_{quantity}_std"] = paper, paper_std
        row[f"{quantity}_difference"] = None if row[quantity] is None else row[quantity] - paper
        caveats.append(CAVEATS.get((artefact, row["dataset"], f"{name} {quantity}")))
    return join_notes(*caveats)


def _in_order(rows: Sequence[Row], column: str, order: Any, several_within: Sequence[str] = ()) -> list[Row]:
    """Copies of the rows by dataset, then in the given order of a column's values, others last.

    ``several_within``: leave out rows that share these columns' values with no row of another ``column``.
    """
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    ranks = {name: rank for rank, name in enumerate(order)}
    if several_within:
        values: dict[Any, set[str]] = {}
        for row in rows:
            values.setdefault(tuple(row[name] for name in several_within), set()).add(row[column])
        rows = [row for row in rows if len(values[tuple(row[name] for name in several_within)]) > 1]
    chosen = sorted(rows, key=lambda row: (datasets.index(row["dataset"]), ranks.get(row[column], len(ranks))))
    return [dict(row) for row in chosen]

"""Our numbers beside the paper's, which are transcribed in ``reference.yaml``."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from btinet.analysis.schemas import SETTING
from btinet.analysis.selections import levels_table, table3
from btinet.analysis.summaries import Row, join_notes
from btinet.evaluation.schema import LEVELS

PAPER_DATASETS = {"busi": "BUSI", "ham10000": "HAM", "brisc2025": "BRISC"}
"""Our name of a dataset -> its key in reference.yaml."""

ARTEFACTS = {
    "seg levels": {"busi": "A3", "brisc2025": "A7", "ham10000": "A12"},
    "clf levels": {"busi": "A4", "brisc2025": "A8", "ham10000": "A13"},
    "combined": {"busi": "A5", "brisc2025": "A9", "ham10000": "A14"},
    "spearman": {"busi": "A6", "brisc2025": "A11", "ham10000": "A16"},
    "delta": {"busi": "BUSI text", "brisc2025": "A10", "ham10000": "A15"},
    "rho": {"busi": "Fig. A2", "brisc2025": "Fig. A8", "ham10000": "Fig. A15"},
}
"""Where the paper has what it prints for each dataset by itself."""

TABLE_A18 = {"n": "n", "accuracy": "acc", "precision": "precision", "recall": "recall", "f1": "f1"}
TABLE3_DETECTORS = {"mc": "mc", "one_minus_conf": "one_minus_conf", "upa_oracle": "upa_best"}
TABLE_A2_DETECTORS = {"mc": "mc", "combined_oracle": "combined", "best_oracle": "best"}
TABLE_A5_DETECTORS = {
    "mc": "mc",
    "mean": "neg_delta_mean",
    "weighted_oracle": "neg_delta_auc_weighted",
    "best_oracle": "neg_delta_best",
}
SPEARMAN = {
    ("seg_energy", "mc_seg"): "seg_energy_vs_mc_seg",
    ("delta", "mc_seg"): "delta_vs_mc_seg",
    ("align", "mc_mi"): "align_vs_mc_mi",
    ("delta", "mc_entropy"): "delta_vs_mc_ent",
}

TABLE4 = {
    "plain": (False, False, False),
    "no-tim": (True, False, False),
    "no-mscf-no-upa": (False, True, False),
    "no-upa": (True, True, False),
    "no-mscf": (False, True, True),
    "full": (True, True, True),
}
"""Our name of a variant -> whether it has MSCF, TIM and UPA; in the paper's order."""

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

PAPER_SEED = 42
"""The seed to which the paper's tables of single runs point (paper notes B45)."""

IMAGE_LEVEL_SPLIT = "the paper's 1503 images are an image-level split, which shares lesions with training"
LESION_WISE = "the paper's Table A15 implies 77.8 on the lesion-wise split"
BRISC_ERRORS = "the paper's Table A10 has 14 errors, which allow at most 98.6"
TUMOURS_ONLY = "among the images with a tumour, as the paper counts"
EARLIER_PAPER = "the printed value is, digit for digit, that of the authors' earlier paper with another gate"
UNINFORMATIVE = "one failure in a hundred: the paper itself calls AUPRC here uninformative"
CAVEATS = {
    ("A17", "busi", "dice"): "the printed Dice exceeds what the printed precision and recall allow",
    ("A17", "ham10000", "n"): IMAGE_LEVEL_SPLIT,
    ("A18", "ham10000", "n"): IMAGE_LEVEL_SPLIT,
    ("A18", "ham10000", "accuracy"): LESION_WISE,
    ("A18", "brisc2025", "accuracy"): BRISC_ERRORS,
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
    **{
        ("4", "busi", f"{variant} {quantity}"): EARLIER_PAPER
        for variant in ("plain", "no-tim", "no-mscf-no-upa")
        for quantity in ("iou", "accuracy")
    },
    **{
        ("4", "busi", f"{variant} accuracy"): "three runs on 117 images cannot have the paper's mean accuracy"
        for variant in ("no-upa", "no-mscf")
    },
    **{("2", "ham10000", f"{name} auprc"): UNINFORMATIVE for name in ("mc", *LEVELS)},
    **{("A2", "ham10000", f"{name} auprc"): UNINFORMATIVE for name in TABLE_A2_DETECTORS},
    **{("A14", "ham10000", f"{name} auprc"): UNINFORMATIVE for name in TABLE_A5_DETECTORS},
}
"""(artefact, dataset, quantity) -> what is wrong with the printed value (paper notes 0.3 to 0.6, B29)."""

Tables = Mapping[str, Sequence[Row]]


@functools.cache
def reference() -> dict[str, Any]:
    """The paper's numbers."""
    content: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("reference.yaml").read_text())
    return content


def comparison(tables: Tables) -> Iterator[Row]:
    """Every cell that the paper prints and these runs have.

    Units are the printed ones. ``z`` = (ours - paper) / sqrt(ours_std^2 + paper_std^2) (paper notes 5d), null
    where either deviation is unknown or both are 0; most tables are printed without deviations.
    """
    paper = reference()
    for row, printed in _rows(tables["segmentation"], paper["tableA17_segmentation"]):
        yield from (_cell("A17", row, name, "", value) for name, value in printed.items())
    for row, printed in _rows(tables["classification"], paper["tableA18_classification"]):
        yield from (_cell("A18", row, name, "", printed[key]) for name, key in TABLE_A18.items())
    for row, printed in _rows(tables["table2"], paper["table2_seg_failure_wseg"]):
        name = row["level"] or "mc"
        for metric, key in (("auroc", "auc"), ("auprc", "pr")):
            yield _cell("2", row, metric, name, printed[name][key])
    for row, printed in _rows(_classification_choices(tables["detection"]), paper["table3_clf_failure"]):
        if row["detector"] in TABLE3_DETECTORS:
            yield from _choice("3", row, printed[TABLE3_DETECTORS[row["detector"]]], {"auroc": "auc", "auprc": "pr"})
    for row, printed in _rows(tables["table_a2"], paper["tableA2_seg_failure_summary"]):
        if row["detector"] in TABLE_A2_DETECTORS:
            yield from _choice("A2", row, printed[TABLE_A2_DETECTORS[row["detector"]]], {"auroc": "auc", "auprc": "ap"})
    yield from _levels("seg levels", tables["table_a3"], ("tableA3_BUSI", "tableA7_BRISC", "tableA12_HAM"), "seg")
    clf = [
        row
        for population in ("all", "positives")
        for row in _of_population(levels_table(tables["detection"], "clf", population), tables["detection"], population)
    ]
    yield from _levels("clf levels", clf, ("tableA4_BUSI", "tableA8_BRISC", "tableA13_HAM"), "clf")
    for row, printed in _rows(
        tables["table_a5"], _by_dataset("tableA5_BUSI", "tableA9_BRISC", "tableA14_HAM", "_combined")
    ):
        if row["detector"] in TABLE_A5_DETECTORS:
            value = printed[TABLE_A5_DETECTORS[row["detector"]]]
            keys = {"auroc": "auc", "auprc": "auprc", "ece": "ece"}
            yield from _choice(ARTEFACTS["combined"][row["dataset"]], row, value, keys)
    yield from _correlations(tables["correlations"])
    yield from _wrong_correct(tables["gate_wrong_correct"], tables["gate_wrong_correct_runs"])
    for artefact in ("4", "5", "6"):
        for row in tables[f"table{artefact}"]:
            for name in ("iou", "accuracy"):
                if row.get(f"paper_{name}") is not None:
                    printed = [row[f"paper_{name}"], row[f"paper_{name}_std"]]
                    yield _cell(artefact, row, name, row["variant" if artefact == "4" else "method"], printed)


def rank_agreement(cells: Sequence[Row]) -> Iterator[Row]:
    """Kendall's tau-b of ours and the paper's over the cells of a column: within a dataset, for Tables A17 and A18
    over the datasets."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for cell in cells:
        over_datasets = cell["artefact"] in ("A17", "A18")
        if cell["ours"] is not None and cell["column"] not in ("n", "n_wrong", "n_correct"):
            dataset = None if over_datasets else cell["dataset"]
            groups.setdefault((cell["artefact"], dataset, cell["preset"], cell["column"]), []).append(cell)
    for (artefact, dataset, preset, column), found in groups.items():
        row = {"artefact": artefact, "dataset": dataset, "preset": preset, "column": column, "cells": len(found)}
        if len(found) < 3:
            yield {**row, "note": "fewer than three cells"}
            continue
        tau, p = stats.kendalltau([cell["ours"] for cell in found], [cell["paper"] for cell in found])
        if np.isnan(tau):
            yield {**row, "note": "all cells are the same"}
        else:
            yield {**row, "tau": float(tau), "p": float(p)}


def _by_dataset(busi: str, brisc: str, ham: str, suffix: str) -> dict[str, Any]:
    """Tables that the paper prints for each dataset by itself, by the dataset's key."""
    paper = reference()
    return {"BUSI": paper[busi + suffix], "BRISC": paper[brisc + suffix], "HAM": paper[ham + suffix]}


def _rows(table: Sequence[Row], printed: Mapping[str, Any]) -> Iterator[tuple[Row, Any]]:
    """Rows of the full BTI-Net on a dataset of the paper, each with what the paper prints for it."""
    for row in table:
        if row["method"] == "btinet" and row["variant"] == "full" and row["dataset"] in PAPER_DATASETS:
            yield row, printed[PAPER_DATASETS[row["dataset"]]]


def _of_population(rows: Iterator[Row], detection: Sequence[Row], population: str) -> Iterator[Row]:
    """Of the classification failures' rows, those of the population in which the paper counts them: of BRISC the
    images with a tumour (paper notes B20), where there are others."""
    has_others = {row["dataset"] for row in detection if (row["task"], row["population"]) == ("clf", "positives")}
    for row in rows:
        tumours = row["dataset"] == "brisc2025" and "brisc2025" in has_others
        if tumours == (population == "positives"):
            yield {**row, "note": join_notes(TUMOURS_ONLY if tumours else None, row["note"])}


def _classification_choices(detection: Sequence[Row]) -> list[Row]:
    return [
        row
        for population in ("all", "positives")
        for row in _of_population(table3(detection, population), detection, population)
    ]


def _choice(artefact: str, row: Row, printed: Mapping[str, Any], keys: Mapping[str, str]) -> Iterator[Row]:
    """Cells of a detector; where one is selected, the note says which ours and the paper's are."""
    if "level" in printed and row["level"]:
        theirs = f"{printed.get('signal', 'neg_delta')} {printed['level']}"
        row = {**row, "note": join_notes(row["note"], f"ours {row['signal']} {row['level']}, paper {theirs}")}
    for metric, key in keys.items():
        yield _cell(artefact, row, metric, row["detector"], printed[key])


def _levels(kind: str, rows: Sequence[Row], names: tuple[str, str, str], task: str) -> Iterator[Row]:
    for row, printed in _rows(rows, _by_dataset(*names, f"_{task}_auc")):
        value = printed[row["signal"]]
        level = row["level"]
        cell = f"{row['signal']} {level}" if level else row["signal"]
        yield _cell(ARTEFACTS[kind][row["dataset"]], row, "auroc", cell, value[LEVELS.index(level)] if level else value)


def _correlations(rows: Sequence[Row]) -> Iterator[Row]:
    figures = {"BUSI": "figA2_BUSI_rho", "BRISC": "figA8_BRISC_rho", "HAM": "figA15_HAM_rho"}
    for row, printed in _rows(rows, _by_dataset("tableA6_BUSI", "tableA11_BRISC", "tableA16_HAM", "_spearman")):
        pair, level = (row["x"], row["y"]), row["level"]
        if pair in SPEARMAN:
            value = printed[SPEARMAN[pair]]["rho"][LEVELS.index(level)]
            yield _cell(ARTEFACTS["spearman"][row["dataset"]], row, "rho", f"{pair[0]} ~ {pair[1]} {level}", value)
    for row, printed in _rows(rows, {key: reference()["figures"][name] for key, name in figures.items()}):
        shown = printed.get(f"{row['x']}_{row['y']}")
        if shown and shown["level"] == row["level"]:
            cell = f"{row['x']} ~ {row['y']} {row['level']}"
            yield _cell(ARTEFACTS["rho"][row["dataset"]], row, "rho", cell, shown["rho"])


def _wrong_correct(rows: Sequence[Row], runs: Sequence[Row]) -> Iterator[Row]:
    """Means over seeds; t and p of the paper's seed, if it is among the runs."""
    paper = reference()
    printed = {
        "BUSI": paper["text_BUSI_delta_wrong_vs_correct"],
        "BRISC": paper["tableA10_BRISC_delta"],
        "HAM": paper["tableA15_HAM_delta"],
    }
    has_others = {row["dataset"] for row in rows if row["population"] == "positives"}
    tests = [
        {**row, "note": join_notes(row["note"], f"seed {PAPER_SEED}")} for row in runs if row["seed"] == PAPER_SEED
    ]
    for table, names in ((rows, ("n_wrong", "mean_wrong", "n_correct", "mean_correct")), (tests, ("t", "p"))):
        for row, values in _rows(table, printed):
            tumours = row["dataset"] == "brisc2025" and "brisc2025" in has_others
            if (row["population"] == "positives") != tumours:
                continue
            shown = values.get(row["level"], {})
            noted = {**row, "note": join_notes(TUMOURS_ONLY if tumours else None, row["note"])}
            for name in names:
                if isinstance(shown.get(name), int | float):
                    yield _cell(ARTEFACTS["delta"][row["dataset"]], noted, name, row["level"], shown[name])


def _cell(artefact: str, row: Row, column: str, cell: str, printed: Any) -> Row:
    paper, paper_std = printed if isinstance(printed, list) else (printed, None)
    ours, ours_std = row[column], row.get(f"{column}_std")
    quantity = f"{cell} {column}".strip()
    spread = None if ours_std is None or paper_std is None else math.hypot(ours_std, paper_std)
    return {
        **{key: row[key] for key in SETTING},
        "artefact": artefact,
        "quantity": quantity,
        "column": column,
        "cell": cell or None,
        "ours": ours,
        "ours_std": ours_std,
        "ours_low": row.get(f"{column}_low"),
        "ours_high": row.get(f"{column}_high"),
        "paper": paper,
        "paper_std": paper_std,
        "abs_diff": None if ours is None else abs(ours - paper),
        "z": (ours - paper) / spread if ours is not None and spread else None,
        "note": join_notes(row["note"], CAVEATS.get((artefact, row["dataset"], quantity))),
    }

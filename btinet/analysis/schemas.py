"""What the analysis gives: every table by name, its columns, and what a row of it is.

Columns that recur:

* those of :data:`RUN`: one run; those of :data:`SETTING` and ``seeds``: all runs that differ in their seed alone.
* ``x``, ``x_low``, ``x_high``: a value and its 95 % bootstrap interval (:mod:`btinet.analysis.resampling`). Over seeds
  ``x`` is the mean and ``x_std`` the sample standard deviation (ddof=1, paper notes B22), null below two seeds.
* ``note``: why a value or an interval is null, or what to know when reading the row; else null.
* ``task`` (what fails): ``seg`` or ``clf``. ``population``: ``all`` samples, or ``positives``, those with a mask.
  Segmentation failures are looked for among positives; classification failures among all (paper notes B20), and,
  where the dataset has samples without a mask, among positives as well.
* ``signal`` and ``level``: a score of :mod:`btinet.analysis.scores`; ``level`` (D1..D4) is null for those without.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from btinet.analysis.contract import Contract
from btinet.analysis.gate import scatter_rows
from btinet.analysis.runs import RUN, SETTING

COUNTS = ("n", "n_empty")
SEGMENTATION = ("dice", "iou", "median_dice", "precision", "recall", "empty_area", "empty_hit")
CLASSIFICATION = ("accuracy", "precision", "recall", "f1")
DETECTION = ("auroc", "auprc", "aurc", "e_aurc", "augrc", "fpr95", "ece", "brier")
"""Metrics of failure detection (docs/metrics.md)."""

SCORE = ("task", "population", "signal", "level")


def _strings(*names: str) -> list[pa.Field]:
    return [pa.field(name, pa.string()) for name in names]


def _ints(*names: str) -> list[pa.Field]:
    return [pa.field(name, pa.int64()) for name in names]


def _floats(*names: str) -> list[pa.Field]:
    return [pa.field(name, pa.float64()) for name in names]


def _with_interval(*names: str) -> list[pa.Field]:
    return _floats(*(f"{name}{suffix}" for name in names for suffix in ("", "_low", "_high")))


def _over_seeds(*names: str) -> list[pa.Field]:
    return _floats(*(f"{name}{suffix}" for name in names for suffix in ("", "_std", "_low", "_high")))


def _means(*names: str) -> list[pa.Field]:
    """Counts: averaged over seeds, without an interval."""
    return _floats(*(f"{name}{suffix}" for name in names for suffix in ("", "_std")))


NOTE = _strings("note")
SETTING_FIELDS = [RUN.field(name) for name in SETTING]
SEEDS = [pa.field("seeds", pa.int32())]


def _run(*fields: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema([*RUN, *(field for part in fields for field in part), *NOTE])


def _setting(*fields: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema([*SETTING_FIELDS, *SEEDS, *(field for part in fields for field in part), *NOTE])


def _methods(*quantities: str) -> list[pa.Field]:
    return [
        field
        for name in quantities
        for field in (
            *_over_seeds(name),
            *_floats(f"paper_{name}", f"paper_{name}_std", f"{name}_difference"),
        )
    ]


FAILURES = _means("n", "n_failures")
CHOICE = _setting(_strings("detector", "signal", "level"), FAILURES, _over_seeds("auroc", "auprc", "ece"))
LEVELS_TABLE = _setting(
    _strings("signal", "level"),
    FAILURES,
    _over_seeds("auroc", "auprc"),
    [pa.field(name, pa.bool_()) for name in ("beats_mc", "best_of_level")],
)
CORRELATION = _strings("x", "y", "level", "population")
GATE = ("mean_wrong", "mean_correct", "difference")

CONTRACTS = {
    "segmentation_runs": Contract(
        _run(_ints(*COUNTS), _with_interval(*SEGMENTATION)),
        "a run: Table A17 in percent, on test samples with a mask; empty_*: on the n_empty samples without",
    ),
    "segmentation": Contract(
        _setting(_means(*COUNTS), _over_seeds(*SEGMENTATION)), "a setting: segmentation_runs over seeds"
    ),
    "classification_runs": Contract(
        _run(_ints("n"), _with_interval(*CLASSIFICATION)),
        "a run: Table A18 on all test samples; accuracy in percent, the others in [0, 1]",
    ),
    "classification": Contract(
        _setting(_means("n"), _over_seeds(*CLASSIFICATION)), "a setting: classification_runs over seeds"
    ),
    "detection_runs": Contract(
        _run(_strings("split", *SCORE), _ints("n", "n_failures"), _with_interval(*DETECTION)),
        "a run, split and score: how well the score finds the failures; intervals for test only",
    ),
    "detection": Contract(
        _setting(_strings("split", *SCORE), FAILURES, _over_seeds(*DETECTION)),
        "a setting, split and score: detection_runs over seeds",
    ),
    "curves": Contract(
        pa.schema([*RUN, *_strings(*SCORE, "curve"), *_floats("x", "y")]),
        "a point of a test curve of a run and score, in drawing order; curve: roc (x = FPR, y = TPR), pr (x = recall, "
        "y = precision), risk_coverage (x = coverage, y = share of failures among what is accepted). seg among "
        "positives, clf among all",
    ),
    "signal_tests": Contract(
        _run(
            _strings(*SCORE, "reference"),
            _floats("auroc", "auroc_mc"),
            _with_interval("difference"),
            _floats("z", "p", "p_holm"),
        ),
        "a run, single-pass score and reference: its AUROC against Monte Carlo dropout's on the same test samples, "
        "which is scored as mc or mc_lesion; DeLong's z and p, clustered where the samples are; p_holm: corrected over "
        "the scores of this run, task, population and reference",
    ),
    "table2": Contract(
        _setting(_strings("signal", "level"), FAILURES, _over_seeds(*DETECTION)),
        "Table 2: a setting and mc or w_seg at a level, for segmentation failures",
    ),
    "table3": Contract(
        CHOICE,
        "Table 3: a setting and detector of classification failures: mc, one_minus_conf, upa_oracle (the signal and "
        "level with the best AUROC on test), upa_validation (the one with the best on validation, scored on test)",
    ),
    "table_a2": Contract(
        CHOICE,
        "Table A2: a setting and detector of segmentation failures: mc, mc_lesion and one_minus_mask_conf (not in the "
        "paper), combined_oracle and combined_validation (neg_delta weighted by AUROC), best_oracle and "
        "best_validation (signal and level)",
    ),
    "table_a3": Contract(LEVELS_TABLE, "Tables A3, A7, A12: a setting, signal and level, for segmentation failures"),
    "table_a4": Contract(LEVELS_TABLE, "Tables A4, A8, A13: a setting, signal and level, for classification failures"),
    "table_a5": Contract(
        CHOICE,
        "Tables A5, A9, A14: a setting and detector of segmentation failures made of neg_delta: mc, mean, "
        "weighted_oracle, weighted_validation, best_oracle, best_validation (level)",
    ),
    "correlations_runs": Contract(
        _run(
            CORRELATION,
            _ints("n"),
            _with_interval("rho"),
            _floats("p"),
            [pa.field("marked", pa.bool_())],
        ),
        "Tables A6, A11, A16 and Figures A2, A8, A15: a run, pair of quantities and level: Spearman's rho; marked: "
        "|rho| > 0.3 and p < 0.05",
    ),
    "correlations": Contract(
        _setting(CORRELATION, _means("n"), _over_seeds("rho"), _ints("seeds_marked")),
        "a setting, pair and level: correlations_runs over seeds",
    ),
    "gate_wrong_correct_runs": Contract(
        _run(_strings("population", "level"), _ints("n_wrong", "n_correct"), _with_interval(*GATE), _floats("t", "p")),
        "Tables A10, A15: a run, population and level: mean delta of wrongly and of correctly classified samples; t "
        "and p of the pooled t-test",
    ),
    "gate_wrong_correct": Contract(
        _setting(_strings("population", "level"), _means("n_wrong", "n_correct"), _over_seeds(*GATE)),
        "a setting, population and level: gate_wrong_correct_runs over seeds",
    ),
    "tim_magnitude": Contract(
        _setting(_strings("direction", "norm", "level", "group"), _means("n"), _over_seeds("magnitude")),
        "Figures 2, A11, A18: a setting, direction (seg_to_clf, clf_to_seg), norm (l1, l2), level and group of samples "
        "with a mask: easy and hard (upper and lower quartile of IoU), or easy_minus_hard",
    ),
    "scatter": Contract(
        pa.schema(
            [
                *RUN,
                *_strings("sample_id"),
                pa.field("has_mask", pa.bool_()),
                *_strings("level"),
                *_floats("delta", "w_seg", "iou", "conf", "mc"),
                pa.field("correct", pa.bool_()),
            ]
        ),
        "Figures A2, A8, A15: a test sample and level of a run with a gate; mc: Monte Carlo dropout's score of the "
        "segmentation",
        scatter_rows,
    ),
    "table4": Contract(
        _setting(
            [pa.field(name, pa.bool_()) for name in ("mscf", "tim", "upa")],
            _methods("iou", "accuracy"),
            _with_interval("iou_change", "accuracy_change"),
        ),
        "Table 4: a setting of BTI-Net where a dataset has several variants: Table 4's in its order, then others "
        "(mscf, tim, upa null); *_change: this variant less the full network, same seeds",
    ),
    "table5": Contract(
        _setting(_methods("iou", "accuracy")),
        "Table 5: a setting that does both tasks, variants of BTI-Net left out; the paper's methods in its order, then "
        "others. No rows where this leaves a single method",
    ),
    "table6": Contract(
        _setting(_methods("iou")),
        "Table 6: a setting, in the paper's order, then the joint methods. No rows where none only segments",
    ),
    "methods_tests": Contract(
        pa.schema(
            [
                *_strings("dataset", "preset", "method", "variant", "quantity"),
                *SEEDS,
                *_ints("n"),
                *_floats("reference", "value"),
                *_with_interval("difference"),
                *_floats("p", "p_holm"),
                *NOTE,
            ]
        ),
        "a method or variant against the full BTI-Net on the same seeds and test samples: difference = BTI-Net less "
        "it, in percent; p: paired bootstrap over seeds and samples, two-sided; p_holm: over the methods of this "
        "dataset and quantity",
    ),
    "comparison": Contract(
        pa.schema(
            [
                *_strings("artefact"),
                *SETTING_FIELDS,
                *_strings("quantity", "column", "cell"),
                *_floats("ours", "ours_std", "ours_low", "ours_high", "paper", "paper_std", "abs_diff", "z"),
                *NOTE,
            ]
        ),
        "a cell that the paper prints, ours beside it: artefact (2, A17...), cell (row label within the artefact), "
        "column (metric), quantity (both); z = (ours - paper) / sqrt(ours_std^2 + paper_std^2); note: also what is "
        "known to be inconsistent in the printed value",
    ),
    "rank_agreement": Contract(
        pa.schema([*_strings("artefact", "dataset", "preset", "column"), *_ints("cells"), *_floats("tau", "p"), *NOTE]),
        "a column of the paper's: Kendall's tau-b between our cells and the printed ones; dataset is null where the "
        "cells are the datasets (A17, A18)",
    ),
    "claims": Contract(
        pa.schema(
            [
                *_strings("claim", "source", "dataset", "preset"),
                pa.field("stated", pa.bool_()),
                *_strings("verdict", "numbers", "reason"),
            ]
        ),
        "a statement of the paper and a dataset (stated: whether the paper makes it of this dataset): verdict holds, "
        "does not hold, or cannot be told; numbers: what it rests on, with intervals; reason: why it cannot be told, "
        "or what to know. Datasets without runs last",
    ),
}
"""Name of a table -> its contract, in the order in which people read them. docs/extend.md shows how to add one."""

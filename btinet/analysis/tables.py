"""From per-sample predictions to every table (:mod:`btinet.analysis.schemas` says what each is)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from threadpoolctl import threadpool_limits

from btinet.analysis import selections
from btinet.analysis.claims import claims
from btinet.analysis.detection import curve_rows, detection_entries, score_runs, signal_test_rows
from btinet.analysis.estimates import Estimates
from btinet.analysis.gate import correlation_entries, tim_entries, wrong_correct_entries
from btinet.analysis.methods import methods_tests, table4, table5, table6
from btinet.analysis.paper import comparison, rank_agreement
from btinet.analysis.quality import classification_entry, segmentation_entry
from btinet.analysis.resampling import RESAMPLES, Resampling
from btinet.analysis.runs import SETTING, EvaluatedRun, evaluated_runs
from btinet.analysis.schemas import CLASSIFICATION, CONTRACTS, SEGMENTATION
from btinet.analysis.summaries import Entry, Row, run_rows, setting_rows

KEPT = {
    "segmentation": SEGMENTATION,
    "classification": CLASSIFICATION,
    "detection": ("auroc", "auprc"),
    "correlations": ("rho",),
    "gate_wrong_correct": ("difference",),
    "tim_magnitude": ("magnitude",),
}
"""What differences between settings are taken of, for tests and claims."""


def analyse(predictions: pa.Table, resamples: int = RESAMPLES) -> dict[str, pa.Table]:
    """Every table of :data:`btinet.analysis.schemas.CONTRACTS`, by name.

    Args:
        predictions: rows of :data:`btinet.evaluation.schema.PREDICTIONS`, any number of runs.
        resamples: of the bootstrap, behind every interval; 0 leaves intervals out.

    Raises:
        InputError: two runs differ in nothing but their settings' hash, or in the images they were tested on.
    """
    with threadpool_limits(1):  # many small products: threads would cost more than they give
        return _analyse(evaluated_runs(predictions), resamples)


def _analyse(runs: list[EvaluatedRun], resamples: int) -> dict[str, pa.Table]:
    resampling = Resampling([(run.key["dataset"], run.test) for run in runs], resamples)
    rows: dict[str, list[Row]] = {name: [] for name in CONTRACTS}
    estimates = Estimates()
    for setting, by_seed in _settings(runs):
        _add_setting(rows, estimates, setting, by_seed, resampling)
    rows["table2"] += selections.table2(rows["detection"])
    rows["table3"] += selections.table3(rows["detection"])
    rows["table_a2"] += selections.table_a2(rows["detection"])
    rows["table_a3"] += selections.levels_table(rows["detection"], "seg")
    rows["table_a4"] += selections.levels_table(rows["detection"], "clf")
    rows["table_a5"] += selections.table_a5(rows["detection"])
    rows["table4"] += table4(rows["segmentation"], rows["classification"], estimates)
    rows["table5"] += table5(rows["segmentation"], rows["classification"])
    rows["table6"] += table6(rows["segmentation"], rows["classification"])
    rows["methods_tests"] += methods_tests(rows["segmentation"], estimates)
    rows["comparison"] += comparison(rows)
    rows["rank_agreement"] += rank_agreement(rows["comparison"])
    rows["claims"] += claims(rows, estimates)
    return {name: pa.Table.from_pylist(rows[name], contract.schema) for name, contract in CONTRACTS.items()}


def _add_setting(
    rows: dict[str, list[Row]],
    estimates: Estimates,
    setting: Row,
    by_seed: dict[int, EvaluatedRun],
    resampling: Resampling,
) -> None:
    """Rows about the runs of one setting and about the setting."""
    scored = score_runs(by_seed)
    entries: dict[str, dict[int, list[Entry]]] = {}
    for seed, run in by_seed.items():
        dataset = run.key["dataset"]
        weights = resampling.weights(dataset, run.test)
        val, test = scored[seed]
        on_test = detection_entries("test", test, dataset, resampling)
        made = {
            "segmentation": [segmentation_entry(run.test, weights)],
            "classification": [classification_entry(run.test, weights)],
            "detection": [*detection_entries("val", val, dataset, resampling), *on_test],
            "correlations": correlation_entries(run, resampling),
            "gate_wrong_correct": wrong_correct_entries(run, resampling),
            "tim_magnitude": tim_entries(run, resampling),
        }
        for name, found in made.items():
            entries.setdefault(name, {})[seed] = found
            if f"{name}_runs" in rows:
                rows[f"{name}_runs"] += run_rows(run.key, found)
            estimates.add(run.key, name, on_test if name == "detection" else found, KEPT[name])
        rows["curves"] += curve_rows(run.key, test)
        rows["signal_tests"] += signal_test_rows(run.key, test, on_test)
        for name, contract in CONTRACTS.items():
            if contract.of_run is not None:
                rows[name] += contract.of_run(run)
    for name, of_seeds in entries.items():
        made_rows = list(setting_rows(setting, of_seeds))
        if name == "correlations":
            _count_marks(made_rows, of_seeds)
        rows[name] += made_rows


def _settings(runs: Sequence[EvaluatedRun]) -> Iterator[tuple[Row, dict[int, EvaluatedRun]]]:
    """Each setting with its runs by seed."""
    groups: dict[tuple[Any, ...], dict[int, EvaluatedRun]] = {}
    for run in runs:
        groups.setdefault(tuple(run.key[name] for name in SETTING), {})[run.key["seed"]] = run
    for key, by_seed in groups.items():
        yield dict(zip(SETTING, key, strict=True)), by_seed


def _count_marks(rows: Sequence[Row], by_seed: dict[int, list[Entry]]) -> None:
    for row, *entries in zip(rows, *by_seed.values(), strict=True):
        row["seeds_marked"] = sum(bool(entry.extra["marked"]) for entry in entries)

"""Failure detection: every score's metrics, curves and tests, and what the paper's tables select of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from btinet.analysis.ranking import auroc, curves, failure_detection
from btinet.analysis.resampling import Floats, Resampling, Weights, cluster_ids, no_weights
from btinet.analysis.runs import EvaluatedRun
from btinet.analysis.schemas import DETECTION
from btinet.analysis.scores import MC, Population, Score, combined, populations, single_scores, undefined
from btinet.analysis.significance import delong, difference_test, holm
from btinet.analysis.summaries import Entry, Row, run_rows
from btinet.evaluation.schema import LEVELS

CURVE_POINTS = 100
"""At most, per curve."""

MANY_PASSES = {name for scores in MC.values() for name in scores}
"""Signals that one forward pass does not give."""

REFERENCES = ("mc", "mc_lesion")
"""Monte Carlo dropout's scores that those of one pass are tested against: the paper's, and the one free of size."""


@dataclass(frozen=True)
class Scored:
    """A run's test samples of one population, and all scores of them."""

    population: Population
    scores: list[Score]


def score_runs(runs: Mapping[int, EvaluatedRun]) -> dict[int, tuple[list[Scored], list[Scored]]]:
    """For each seed of a setting, its scored populations on val and on test.

    ``neg_delta_mean`` averages -delta over the levels. ``neg_delta_weighted_*`` weights each level by how far its AUROC
    exceeds 0.5 (paper notes B23), averaged over the seeds: on test itself for ``oracle``, as the paper has it, which
    flatters it; on val for ``validation``. Both are scores of test samples.
    """
    empty = any(pc.any(pc.invert(run.test["has_mask"])).as_py() for run in runs.values())
    scored = {
        seed: tuple(
            [Scored(population, single_scores(population)) for population in populations(rows, empty)]
            for rows in (run.val, run.test)
        )
        for seed, run in runs.items()
    }
    first_test = next(iter(scored.values()))[1]
    on_val, on_test = (
        [_excess([found[place][index] for found in scored.values()]) for index in range(len(first_test))]
        for place in (0, 1)
    )
    result = {}
    for seed, (val, test) in scored.items():
        extended = []
        for part, val_weights, test_weights in zip(test, on_val, on_test, strict=True):
            levels = [score for score in part.scores if score.signal == "neg_delta"]
            made = [
                combined("neg_delta_mean", levels, [1.0] * len(levels), "test"),
                combined("neg_delta_weighted_oracle", levels, test_weights, "test"),
                combined("neg_delta_weighted_validation", levels, val_weights, "val"),
            ]
            extended.append(Scored(part.population, [*part.scores, *made]))
        result[seed] = (val, extended)
    return result


def detection_entries(split: str, scored: Sequence[Scored], dataset: str, resampling: Resampling) -> list[Entry]:
    """Every metric of every score; with resamples on test."""
    return [
        entry
        for part in scored
        for entry in _detections(
            split,
            part,
            resampling.weights(dataset, part.population.samples)
            if split == "test"
            else no_weights(len(part.population.samples)),
        )
    ]


def curve_rows(key: Row, scored: Sequence[Scored]) -> Iterator[Row]:
    """Points of each defined score's curves on test: segmentation among positives, classification among all."""
    for part in scored:
        population, failed = part.population, part.population.failed
        if (population.task == "clf") != (population.name == "all"):
            continue
        for score in part.scores:
            if failed is None or undefined(failed, score):
                continue
            where = {**_where(population), "signal": score.signal, "level": score.level}
            for curve, points in curves(failed, score.values).items():
                for x, y in zip(*_thinned(*points), strict=True):
                    yield {**key, **where, "curve": curve, "x": float(x), "y": float(y)}


def signal_test_rows(key: Row, scored: Sequence[Scored], entries: Sequence[Entry]) -> Iterator[Row]:
    """Each single-pass score's AUROC against Monte Carlo dropout's, on a run's test samples.

    Args:
        entries: of :func:`detection_entries` for the same.
    """
    resampled = {tuple(entry.within.values())[1:]: entry.values["auroc"] for entry in entries}
    for part in scored:
        population, failed = part.population, part.population.failed
        usable = [score for score in part.scores if not undefined(failed, score)]
        references = [i for i, score in enumerate(usable) if score.signal in REFERENCES]
        if not references or failed is None:
            continue
        clusters = np.unique(cluster_ids(population.samples).to_numpy(), return_inverse=True)[1]
        aurocs, covariance = delong(failed, np.stack([score.values for score in usable]), clusters)
        where = (population.task, population.name)
        single = [(i, score) for i, score in enumerate(usable) if score.signal not in MANY_PASSES]
        for reference in references:
            against = usable[reference].signal
            rows = []
            for index, score in single:
                z, p = difference_test(aurocs, covariance, index, reference)
                difference = resampled[*where, score.signal, score.level] - resampled[*where, against, None]
                entry = Entry(
                    {**_where(population), "signal": score.signal, "level": score.level, "reference": against},
                    {},
                    {"difference": difference},
                    "the difference has no variance" if np.isnan(z) else None,
                    {
                        "auroc": float(aurocs[index]),
                        "auroc_mc": float(aurocs[reference]),
                        "z": None if np.isnan(z) else z,
                        "p": None if np.isnan(p) else p,
                    },
                )
                rows.append(entry)
            for entry, p_holm in zip(rows, holm([entry.extra["p"] for entry in rows]), strict=True):
                entry.extra["p_holm"] = p_holm
            yield from run_rows(key, rows)


def _detections(split: str, part: Scored, weights: Weights) -> Iterator[Entry]:
    population, failed = part.population, part.population.failed
    reasons = [undefined(failed, score) for score in part.scores]
    values = np.full((len(DETECTION), len(part.scores), len(weights)), np.nan)
    usable = [index for index, reason in enumerate(reasons) if reason is None]
    if failed is not None and usable:
        chosen = [part.scores[index] for index in usable]
        values[:, usable] = failure_detection(
            failed,
            np.stack([score.values for score in chosen]),
            np.stack([score.probability for score in chosen]),
            weights,
        )
    counts = {"n": len(population.samples), "n_failures": None if failed is None else int(failed.sum())}
    for index, (score, reason) in enumerate(zip(part.scores, reasons, strict=True)):
        within = {"split": split, **_where(population), "signal": score.signal, "level": score.level}
        yield Entry(within, counts, dict(zip(DETECTION, values[:, index], strict=True)), reason)


def _excess(parts: Sequence[Scored]) -> list[float]:
    """How far each level's AUROC of -delta, averaged over the seeds in which it is defined, exceeds 0.5."""
    found: dict[str, list[float]] = {level: [] for level in LEVELS}
    for part in parts:
        failed = part.population.failed
        for score in part.scores:
            if score.signal == "neg_delta" and score.level and failed is not None and not undefined(failed, score):
                found[score.level].append(auroc(failed, score.values))
    return [max(float(np.mean(values)) - 0.5, 0.0) if values else 0.0 for values in found.values()]


def _where(population: Population) -> dict[str, Any]:
    return {"task": population.task, "population": population.name}


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most :data:`CURVE_POINTS` of the points, with both ends."""
    if len(x) > CURVE_POINTS:
        kept = np.unique(np.linspace(0, len(x) - 1, CURVE_POINTS).round().astype(int))
        return x[kept], y[kept]
    return x, y

"""What fails, and the scores that should tell (paper Sec. 4.2, E).

A higher score should mean failure. Signals keep the paper's signs (paper notes B26): ``neg_delta`` and ``neg_align``
are negated, ``w_*`` and ``*_energy`` are not, so an AUROC below 0.5 is a finding and not an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from btinet.analysis.resampling import Floats
from btinet.evaluation.schema import LEVELS

FAILURE_IOU = 0.5
"""A segmentation below this IoU is a failure (Sec. 4.2)."""

TASKS = ("seg", "clf")

MC = {
    "seg": {
        "mc": "mc_seg_var",
        "mc_entropy": "mc_seg_entropy",
        "mc_mi": "mc_seg_mi",
        "mc_lesion": "mc_seg_var_fg",
    },
    "clf": {
        "mc": "mc_clf_entropy",
        "mc_mi": "mc_clf_mi",
        "mc_var": "mc_clf_var",
        "mc_head": "mc_head_clf_entropy",
        "mc_head_mi": "mc_head_clf_mi",
        "mc_head_var": "mc_head_clf_var",
    },
}
"""Monte Carlo dropout's scores of each task: variance, predictive entropy, mutual information. ``mc`` is the one that
the paper compares with (paper notes B4); ``mc_lesion`` is the variance over the predicted lesion alone, which does not
grow with its size; ``mc_head*`` are with dropout in the classification head alone (B3)."""

MOST_VARIANCE = 0.25
"""Of numbers between 0 and 1."""

SIGNALS: dict[str, Callable[[pa.Table, int], Floats]] = {
    "w_seg": lambda rows, level: level_values(rows, "w_seg", level),
    "w_clf": lambda rows, level: level_values(rows, "w_clf", level),
    "neg_delta": lambda rows, level: -delta(rows, level),
    "neg_align": lambda rows, level: -level_values(rows, "align", level),
    "seg_energy": lambda rows, level: level_values(rows, "seg_energy", level),
    "clf_energy": lambda rows, level: level_values(rows, "clf_energy", level),
}
"""UPA's signals; each has a score per decoder level."""


@dataclass(frozen=True)
class Population:
    """The samples among which one task's failures are looked for."""

    task: str
    name: str
    """``all``, or ``positives``: those with a mask."""
    samples: pa.Table
    failed: NDArray[np.bool_] | None
    """[n]; None where the method does not do the task."""


class Score(NamedTuple):
    signal: str
    level: str | None
    values: Floats
    """[n]; NaN where missing."""
    reason: str | None = None
    """Why there are no values at all, where it is not that the method lacks the signal."""

    @property
    def probability(self) -> Floats:
        """The score as a probability of failure, [n]: itself if it is one, else scaled to [0, 1] by its extremes over
        these samples (paper notes B25)."""
        if self.signal == "one_minus_conf":
            return self.values
        low, high = self.values.min(), self.values.max()
        return (self.values - low) / (high - low)


def populations(samples: pa.Table, positives_of_clf: bool) -> list[Population]:
    """Segmentation among samples with a mask; classification among all, and if wanted among those as well."""
    positives = samples.filter(samples["has_mask"])
    found = [
        Population("seg", "positives", positives, numbers(positives["iou"]) < FAILURE_IOU),
        Population("clf", "all", samples, _wrong(samples)),
    ]
    return [*found, Population("clf", "positives", positives, _wrong(positives))] if positives_of_clf else found


def single_scores(population: Population) -> list[Score]:
    """Every signal at every level, Monte Carlo dropout's, and the confidence in class and mask."""
    rows = population.samples
    signals = [
        Score(name, level, values(rows, index))
        for name, values in SIGNALS.items()
        for index, level in enumerate(LEVELS)
    ]
    mc = [Score(name, None, _dropout_values(rows, column)) for name, column in MC[population.task].items()]
    confidence = [Score("one_minus_conf", None, 1 - numbers(rows["conf"]))]
    if population.task == "seg":
        confidence.append(Score("one_minus_mask_conf", None, _mask_doubt(rows)))
    return [*signals, *mc, *confidence]


def combined(signal: str, scores: Sequence[Score], weights: Sequence[float], where: str) -> Score:
    """Weighted mean over levels, s = sum a z / sum a (paper notes B23)."""
    if not sum(weights) > 0:
        missing = np.full(len(scores[0].values), np.nan)
        return Score(signal, None, missing, f"no level's AUROC is above 0.5 on {where}")
    used = [(weight, score.values) for weight, score in zip(weights, scores, strict=True) if weight]
    return Score(signal, None, np.asarray(sum(weight * values for weight, values in used) / sum(weights)))


def undefined(failed: NDArray[np.bool_] | None, score: Score) -> str | None:
    """Why this score's detection of failures cannot be judged; None if it can."""
    if failed is None:
        return "the method does not classify"
    if len(failed) == 0:
        return "no samples"
    unusable = int((~np.isfinite(score.values)).sum())
    if unusable == len(failed):
        return score.reason or "no such score for this method"
    if unusable:
        return f"score missing or not finite for {unusable} of {len(failed)} samples"
    if not failed.any():
        return "no failures"
    if failed.all():
        return "all samples are failures"
    if score.values.min() == score.values.max():
        return "the score is the same for all samples"
    return None


def delta(rows: pa.Table, level: int) -> Floats:
    """w_clf - w_seg, [n]."""
    return level_values(rows, "w_clf", level) - level_values(rows, "w_seg", level)


def level_values(rows: pa.Table, column: str, level: int) -> Floats:
    return numbers(pc.list_element(rows[column], level))


def numbers(column: pa.ChunkedArray) -> Floats:
    """float64, NaN where null."""
    return np.asarray(column.cast(pa.float64()).to_numpy())


def _dropout_values(rows: pa.Table, column: str) -> Floats:
    """A score of Monte Carlo dropout, [n]. Where the passes find no lesion to take a variance over, it is the largest:
    segmentations are judged on samples that have one."""
    values = numbers(rows[column])
    return np.where(values == 0, MOST_VARIANCE, values) if column == "mc_seg_var_fg" else values


def _mask_doubt(rows: pa.Table) -> Floats:
    """1 - the mask's confidence in itself, [n]; 1 for an empty one, as for dropout and for the same reason."""
    return 1 - numbers(rows["mask_conf"]) * (numbers(rows["empty_pred"]) == 0)


def _wrong(samples: pa.Table) -> NDArray[np.bool_] | None:
    return None if samples["correct"].null_count else numbers(samples["correct"]) == 0

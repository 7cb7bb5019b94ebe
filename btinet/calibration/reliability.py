"""Selective prediction with a finite-sample guarantee: which predictions may be relied on.

The validation split is divided once, by a hash: a third of it (``learn``) chooses the scores and the order in which
thresholds are tried; the rest (``test``) certifies, by fixed-sequence testing with exact binomial p-values (Learn then
Test, Angelopoulos et al. 2021; selective risk as in Geifman & El-Yaniv 2017). docs/reliability.md states what is
guaranteed and under which assumptions.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom
from sklearn.metrics import roc_auc_score

from btinet.config import Strict

LEARN_SHARE = 3
"""One unit (a group, or a sample without one) in so many goes to ``learn``."""

FAILURE_IOU = 0.5
"""A mask below this IoU is a failure (paper Sec. 4.2); an empty mask where there is no lesion has IoU 1 here."""

SIGNS: tuple[Literal[1], Literal[-1]] = (1, -1)

Reliable = Literal["yes", "check", "no"]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Score(Strict):
    """What a task's predictions are ranked by: ``sign`` times a column of the predictions; higher is worse."""

    column: str
    sign: Literal[1, -1]
    auroc: float | None
    """For failures of the ``learn`` part; None where it holds no failure or nothing else."""

    def of(self, row: Mapping[str, float]) -> float:
        return self.sign * row[self.column]


class Part(Strict):
    """Validation samples; all lists are aligned. The class's are empty where the method does not classify."""

    atypicality: tuple[float, ...]
    """Distance from the training images, see :mod:`btinet.calibration.distribution`."""
    mask_score: tuple[float, ...]
    mask_failed: tuple[bool, ...]
    class_score: tuple[float, ...] = ()
    class_failed: tuple[bool, ...] = ()


class Calibration(Strict):
    """What thresholds for any risk follow from."""

    mask: Score
    classes: Score | None
    """None where the method does not classify."""
    learn: Part
    test: Part


class Rule(NamedTuple):
    """Thresholds for one stated risk."""

    max_risk: float
    confidence: float
    false_alarms: float
    """Stated rate at which images like the training images are called unlike them."""
    atypical: float
    """An image whose distance is above this is unlike the training images."""
    mask: float | None
    """The mask is accepted if its score is at most this; None where nothing could be certified."""
    classes: float | None
    accepted: int
    """Of the ``test`` part."""
    tested: int
    """Size of the ``test`` part."""
    failures: tuple[int, ...]
    """Among the accepted, of the mask and (where the method classifies) of the class."""
    bounds: tuple[float, ...]
    """The same as Clopper-Pearson upper bounds on the risk, each at ``confidence``."""

    @property
    def is_certified(self) -> bool:
        return self.mask is not None

    def __str__(self) -> str:
        if not self.is_certified:
            needed = samples_needed(self.max_risk, self.confidence)
            why = (
                f"{needed} accepted validation samples without a failure are needed and {self.tested} are there"
                if self.tested < needed
                else f"too many of the {self.tested} validation samples kept for this are wrong"
            )
            return f"no guarantee for a risk of {self.max_risk:g} at confidence {self.confidence:g}: {why}"
        what = ("mask", "class")[: len(self.failures)]
        wrong = ", ".join(
            f"{name} wrong in {count} (at most {bound:.1%})"
            for name, count, bound in zip(what, self.failures, self.bounds, strict=True)
        )
        return (
            f"risk at most {self.max_risk:g} at confidence {self.confidence:g}: {self.accepted} of {self.tested} "
            f"validation samples are accepted, {wrong}"
        )


def samples_needed(max_risk: float, confidence: float) -> int:
    """The fewest accepted samples, all of them right, that certify a risk."""
    return int(np.ceil(np.log(1 - confidence) / np.log(1 - max_risk) - 1e-9))


def divide(units: Sequence[str]) -> Bools:
    """Which samples learn, [n]; the others test. ``units`` are group ids, or sample ids where there is no group.

    Of every unit that tests, only the first sample is to be used (:func:`first_of_unit`): the samples that certify
    must be independent.
    """
    ordered = sorted(set(units), key=lambda unit: hashlib.sha256(unit.encode()).digest())
    learning = set(ordered[::LEARN_SHARE])
    return np.array([unit in learning for unit in units], bool)


def first_of_unit(units: Sequence[str]) -> Bools:
    """Which samples are the first of their unit, [n]."""
    seen: dict[str, int] = defaultdict(int)
    first = []
    for unit in units:
        first.append(seen[unit] == 0)
        seen[unit] += 1
    return np.array(first, bool)


def learn_score(candidates: Mapping[str, Floats], failed: Bools, trusted: str) -> Score:
    """The score that ranks failures best (AUROC), each candidate in the better of its directions.

    The trusted one stays unless another is better by more than a standard error: of many candidates on few samples
    the best is mostly luck.

    Args:
        candidates: columns [n] of the ``learn`` part.
        failed: [n]
        trusted: the candidate, lower being worse, to use where nothing speaks for another.
    """
    if failed.all() or not failed.any():
        return Score(column=trusted, sign=-1, auroc=None)

    def score(column: str, sign: Literal[1, -1]) -> Score:
        return Score(column=column, sign=sign, auroc=float(roc_auc_score(failed, sign * candidates[column])))

    first = score(trusted, -1)
    others = [score(name, sign) for name in candidates if name != trusted for sign in SIGNS]
    best = max([first, *others], key=_auroc)
    rarer = min(int(failed.sum()), int((~failed).sum()))
    standard_error = np.sqrt(_auroc(first) * (1 - _auroc(first)) / rarer)
    return best if _auroc(best) > _auroc(first) + standard_error else first


def _auroc(score: Score) -> float:
    return score.auroc or 0.0


def certify(calibration: Calibration, max_risk: float, confidence: float, false_alarms: float) -> Rule:
    """The most inclusive thresholds whose risk is certified to be at most ``max_risk``.

    Both tasks share one threshold, as a rank among the scores of ``learn``: a prediction is accepted if its mask's and
    its class's score are within the lowest ``j`` of them and it is not atypical. The null hypothesis of ``j`` is that
    among accepted predictions more than ``max_risk`` of the masks, or of the classes, are wrong; its p-value is the
    larger of the two tasks' binomial ones. Hypotheses are tested in an order that ``learn`` fixes, from the one with
    most evidence upwards, each at level 1 - ``confidence``, until one is not rejected.
    """
    learn, test = calibration.learn, calibration.test
    distances = np.sort(learn.atypicality)
    # conformal: a new one of n + 1 exchangeable distances is above the k-th largest with probability k / (n + 1)
    rank = max(1, int(false_alarms * (len(distances) + 1)))
    atypical = float(distances[-rank])
    tasks = [learn.mask_score, learn.class_score] if calibration.classes else [learn.mask_score]
    thresholds = np.array([[*sorted(scores), np.inf] for scores in tasks])  # [tasks, hypotheses]

    evidence = _p_values(learn, atypical, thresholds, max_risk)
    start = int(np.flatnonzero(evidence == evidence.min())[-1])
    rejected = _p_values(test, atypical, thresholds, max_risk)[start:] <= 1 - confidence
    passed = len(rejected) if rejected.all() else int(rejected.argmin())

    stated = max(false_alarms, 1 / (len(distances) + 1))
    tested = len(test.mask_score)
    if not passed:
        return Rule(max_risk, confidence, stated, atypical, None, None, 0, tested, (), ())
    chosen = thresholds[:, start + passed - 1]
    accepted, failures = _count(test, atypical, chosen[:, None])
    return Rule(
        max_risk,
        confidence,
        stated,
        atypical,
        float(chosen[0]),
        float(chosen[1]) if calibration.classes else None,
        int(accepted[0]),
        tested,
        tuple(failures[:, 0].tolist()),
        tuple(upper_bound(count, int(accepted[0]), confidence) for count in failures[:, 0].tolist()),
    )


def _p_values(part: Part, atypical: float, thresholds: Floats, max_risk: float) -> Floats:
    """Of the hypotheses that more than ``max_risk`` of a task's accepted predictions are wrong, the larger of the
    tasks'; [hypotheses]. 1 where nothing is accepted."""
    accepted, failures = _count(part, atypical, thresholds)
    values: Floats = binom.cdf(failures, accepted, max_risk).max(0)
    return values


def _count(part: Part, atypical: float, thresholds: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many samples are accepted, [hypotheses], and how many of these fail, [tasks, hypotheses].

    Args:
        thresholds: [tasks, hypotheses]
    """
    accepted = np.broadcast_to(np.asarray(part.atypicality) <= atypical, (thresholds.shape[1], len(part.mask_score)))
    for scores, limits in zip((part.mask_score, part.class_score), thresholds, strict=False):
        accepted = accepted & (np.asarray(scores) <= limits[:, None])
    failed = (part.mask_failed, part.class_failed)[: len(thresholds)]
    return accepted.sum(1), np.stack([(accepted & np.asarray(task, bool)).sum(1) for task in failed])


def count_accepted(rule: Rule, part: Part) -> tuple[int, tuple[int, ...]]:
    """How many samples a rule accepts, and how many of their masks (and classes) are wrong."""
    chosen = np.array([[value] for value in (rule.mask, rule.classes) if value is not None])
    accepted, failures = _count(part, rule.atypical, chosen)
    return int(accepted[0]), tuple(failures[:, 0].tolist())


def upper_bound(failures: int, n: int, confidence: float) -> float:
    """Clopper-Pearson: the risk is at most this with the given confidence (one-sided)."""
    return 1.0 if failures >= n else float(beta.ppf(confidence, failures + 1, n - failures))


def judge(
    calibration: Calibration, rule: Rule, row: Mapping[str, float], distance: float, unlike: str
) -> tuple[Reliable, str]:
    """Whether one prediction may be relied on, and why.

    Args:
        row: the prediction's numbers by column.
        distance: of the image from the training images.
        unlike: what sets the image apart, for the reason.
    """
    if distance > rule.atypical:
        return "no", f"unlike the training images: {unlike}"
    if rule.mask is None:
        return "check", "nothing could be guaranteed for this risk"
    tasks = [("mask", calibration.mask, rule.mask)]
    if calibration.classes is not None and rule.classes is not None:
        tasks.append(("class", calibration.classes, rule.classes))
    rejected = [
        f"{name}: {score.column} {row[score.column]:.3g} is {'above' if score.sign > 0 else 'below'} "
        f"{score.sign * threshold:.3g}"
        for name, score, threshold in tasks
        if not score.of(row) <= threshold
    ]
    if not rejected:
        return "yes", f"risk at most {rule.max_risk:g}"
    return ("no" if len(rejected) == len(tasks) else "check"), "; ".join(rejected)

"""The guarantee of `reliable: yes`: by hand, against scipy, and by simulating thousands of calibrations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from btinet.calibration.reliability import (
    Calibration,
    Part,
    Rule,
    Score,
    certify,
    count_accepted,
    divide,
    first_of_unit,
    judge,
    learn_score,
    samples_needed,
    upper_bound,
)

MASK = Score(column="mask_confidence", sign=-1, auroc=None)
CLASS = Score(column="confidence", sign=-1, auroc=None)


def part(mask: Any, failed: Any, classes: Any = (), class_failed: Any = (), atypicality: Any = None) -> Part:
    atypicality = np.zeros(len(mask)) if atypicality is None else atypicality
    values = {"mask_score": mask, "class_score": classes, "atypicality": atypicality}
    return Part(
        **{name: tuple(np.asarray(value, float).tolist()) for name, value in values.items()},
        mask_failed=tuple(np.asarray(failed, bool).tolist()),
        class_failed=tuple(np.asarray(class_failed, bool).tolist()),
    )


def one_task(learn: Part, test: Part) -> Calibration:
    return Calibration(mask=MASK, classes=None, learn=learn, test=test)


def test_samples_needed() -> None:
    """(1 - 0.1)^22 = 0.0985 is below 0.1 and (1 - 0.1)^21 is not."""
    assert samples_needed(0.1, 0.9) == 22
    assert samples_needed(0.5, 0.5) == 1
    assert samples_needed(0.2, 0.95) == 14


@pytest.mark.parametrize(("failures", "n"), [(0, 22), (3, 60), (30, 60), (60, 60)])
def test_upper_bound(failures: int, n: int) -> None:
    exact = binomtest(failures, n, alternative="less").proportion_ci(0.9, method="exact")
    assert upper_bound(failures, n, 0.9) == pytest.approx(exact.high, abs=1e-9)


class TestCertify:
    """Scores 1, 2, ..., the higher the worse; one task unless said otherwise."""

    def test_by_hand(self) -> None:
        """All above 40 fail: of n > 40 accepted n - 40 are wrong, and the largest n with P(Bin(n, .1) <= n - 40) <= .1
        is 41."""
        scores = np.arange(60) + 1.0
        passing = [n for n in range(41, 61) if binomtest(n - 40, n, 0.1, alternative="less").pvalue <= 0.1]
        assert passing == [41]
        rule = certify(one_task(part(scores[::2], scores[::2] > 40), part(scores, scores > 40)), 0.1, 0.9, 0.05)
        assert rule.mask == 41
        assert (rule.accepted, rule.tested, rule.failures) == (41, 60, (1,))
        assert rule.bounds[0] <= 0.1
        assert str(rule) == (
            "risk at most 0.1 at confidence 0.9: 41 of 60 validation samples are accepted, "
            f"mask wrong in 1 (at most {rule.bounds[0]:.1%})"
        )

    def test_two_tasks(self) -> None:
        """Accepted by both, and each one's risk is kept among those."""
        rng = np.random.default_rng(0)
        mask, classes = rng.random(300), rng.random(300)
        samples = part(mask, mask > 0.7, classes, classes > 0.7)
        rule = certify(Calibration(mask=MASK, classes=CLASS, learn=samples, test=samples), 0.1, 0.9, 0.05)
        assert rule.mask is not None and rule.classes is not None
        accepted = (mask <= rule.mask) & (classes <= rule.classes)
        failures = ((mask > 0.7)[accepted].sum(), (classes > 0.7)[accepted].sum())
        assert (rule.accepted, rule.failures) == (accepted.sum(), failures)
        assert count_accepted(rule, samples) == (rule.accepted, rule.failures)
        assert max(rule.bounds) <= 0.1

    def test_too_few_samples(self) -> None:
        perfect = part(np.arange(21), np.zeros(21))
        rule = certify(one_task(perfect, perfect), 0.1, 0.9, 0.05)
        assert not rule.is_certified
        assert "22 accepted validation samples without a failure are needed and 21 are there" in str(rule)
        assert certify(one_task(perfect, perfect), 0.2, 0.9, 0.05).is_certified

    def test_too_many_failures(self) -> None:
        bad = part(np.arange(100), np.arange(100) % 2)
        rule = certify(one_task(bad, bad), 0.1, 0.9, 0.05)
        assert str(rule).endswith("too many of the 100 validation samples kept for this are wrong")

    def test_atypical_samples_are_not_accepted(self) -> None:
        """Among 39 distances the second largest is the threshold for a rate of 0.05."""
        samples = part(np.arange(39), np.zeros(39), atypicality=np.arange(39))
        rule = certify(one_task(samples, samples), 0.2, 0.9, 0.05)
        assert (rule.atypical, rule.false_alarms, rule.accepted) == (37, 0.05, 38)
        few = certify(one_task(samples, samples), 0.2, 0.9, 0.01)
        assert (few.atypical, few.false_alarms, few.accepted) == (38, 1 / 40, 39)


GRID = (np.arange(20000) + 0.5) / 20000


def risk_at(kind: str, task: str, score: Any) -> Any:
    """Probability of failure of a prediction with this score in [0, 1]."""
    if kind == "informative":
        return score**8 * 0.6
    if kind == "useless":
        return np.full_like(score, 0.1001)
    return 0.1 + 0.1 * np.sin(25 * score + (task == "class"))  # goes up and down: no threshold is the last good one


def true_risk(kind: str) -> Callable[[Rule], float]:
    """The larger of the two tasks' risks among what a rule accepts; their scores are independent and uniform."""
    counts = np.arange(1, len(GRID) + 1)
    risks = {task: np.cumsum(risk_at(kind, task, GRID)) / counts for task in ("mask", "class")}
    return lambda rule: max(
        float(np.interp(min(limit, 1), GRID, risks[task]))
        for task, limit in (("mask", rule.mask), ("class", rule.classes))
        if limit is not None
    )


def draw(kind: str, n: int, rng: np.random.Generator) -> Part:
    mask, classes = rng.random(n), rng.random(n)
    failed = [rng.random(n) < risk_at(kind, task, at) for task, at in (("mask", mask), ("class", classes))]
    return part(mask, failed[0], classes, failed[1])


@pytest.mark.parametrize("kind", ["informative", "useless", "wavy"])
def test_coverage(kind: str) -> None:
    """Over 2,000 calibrations the share whose true risk exceeds the stated one is at most 1 - confidence."""
    rng, risk_of = np.random.default_rng(1), true_risk(kind)
    draws = 2000
    rules = [
        certify(
            Calibration(mask=MASK, classes=CLASS, learn=draw(kind, 40, rng), test=draw(kind, 80, rng)), 0.1, 0.9, 0.05
        )
        for _ in range(draws)
    ]
    certified = [rule for rule in rules if rule.is_certified]
    violations = sum(risk_of(rule) > 0.1 for rule in certified)
    assert violations / draws <= 0.1 + 2 * np.sqrt(0.1 * 0.9 / draws)
    if kind == "informative":
        assert len(certified) > draws / 4  # not kept by never promising anything


def test_choosing_without_testing_breaks_it() -> None:
    """The control: the most inclusive threshold that looks right on the very samples is mostly wrong."""
    rng = np.random.default_rng(2)
    violations = 0
    for _ in range(500):
        samples = draw("useless", 120, rng)
        failed = np.asarray(samples.mask_failed)[np.argsort(samples.mask_score)]
        violations += bool((np.cumsum(failed) / np.arange(1, 121) <= 0.1).any())  # the true risk is 0.1001 everywhere
    assert violations / 500 > 0.5


def test_false_alarms() -> None:
    """Images like the others are called atypical at the stated rate."""
    rng = np.random.default_rng(3)
    flagged = []
    for _ in range(1000):
        learn, test = (part(rng.random(n), np.zeros(n), atypicality=rng.random(n)) for n in (39, 30))
        rule = certify(one_task(learn, test), 0.1, 0.9, 0.05)
        flagged.append((rng.random(50) > rule.atypical).mean())
    assert np.mean(flagged) == pytest.approx(0.05, abs=0.005)


class TestDivide:
    def test_units_stay_together(self) -> None:
        units = [f"lesion-{number % 40}" for number in range(100)]
        learns = divide(units)
        assert all(len({learns[i] for i in range(100) if units[i] == unit}) == 1 for unit in set(units))
        assert len({unit for unit, chosen in zip(units, learns, strict=True) if chosen}) == 14  # a third of 40
        assert first_of_unit(units).sum() == 40

    def test_does_not_depend_on_the_order(self) -> None:
        units = [f"s{number}" for number in range(30)]
        assert divide(units[::-1]).tolist() == divide(units)[::-1].tolist()


class TestLearnScore:
    failed = np.arange(40) >= 20

    def test_a_better_one_is_taken_in_its_direction(self) -> None:
        candidates = {"confidence": np.random.default_rng(0).random(40), "w_clf_D2": -np.arange(40.0)}
        score = learn_score(candidates, self.failed, "confidence")
        assert score == Score(column="w_clf_D2", sign=-1, auroc=1.0)
        assert score.of({"w_clf_D2": 0.25}) == -0.25

    def test_luck_is_not_enough(self) -> None:
        slightly_worse = -np.arange(40.0)
        slightly_worse[[18, 21]] = slightly_worse[[21, 18]]
        score = learn_score({"confidence": slightly_worse, "w_clf_D2": -np.arange(40.0)}, self.failed, "confidence")
        assert score.column == "confidence"
        assert score.auroc is not None and 0.98 < score.auroc < 1

    def test_without_failures(self) -> None:
        score = learn_score({"confidence": np.arange(40.0)}, np.zeros(40, bool), "confidence")
        assert score == Score(column="confidence", sign=-1, auroc=None)


class TestJudge:
    samples = part(np.arange(40) / 40, np.zeros(40), np.arange(40) / 40, np.zeros(40))
    calibration = Calibration(mask=MASK, classes=CLASS, learn=samples, test=samples)
    rule = certify(calibration, 0.1, 0.9, 0.05)._replace(mask=-0.8, classes=-0.6)

    @pytest.mark.parametrize(
        ("mask", "confidence", "distance", "reliable", "reason"),
        [
            (0.9, 0.7, 0, "yes", "risk at most 0.1"),
            (0.7, 0.7, 0, "check", "mask: mask_confidence 0.7 is below 0.8"),
            (0.9, 0.5, 0, "check", "class: confidence 0.5 is below 0.6"),
            (0.7, 0.5, 0, "no", "mask: mask_confidence 0.7 is below 0.8; class: confidence 0.5 is below 0.6"),
            (0.9, 0.7, 9, "no", "unlike the training images: colour"),
            (np.nan, 0.7, 0, "check", "mask: mask_confidence nan is below 0.8"),
        ],
    )
    def test_verdicts(self, mask: float, confidence: float, distance: float, reliable: str, reason: str) -> None:
        row = {"mask_confidence": mask, "confidence": confidence}
        assert judge(self.calibration, self.rule, row, distance, "colour") == (reliable, reason)

    def test_nothing_certified(self) -> None:
        rule = self.rule._replace(mask=None, classes=None)
        row = {"mask_confidence": 0.99, "confidence": 0.99}
        assert judge(self.calibration, rule, row, 0, "")[0] == "check"
        assert judge(self.calibration, rule, row, 9, "")[0] == "no"

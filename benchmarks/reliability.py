"""What `reliable: yes` promises beside what held-out images show, for any run or package.

    python benchmarks/reliability.py --run RUN [--storage URL] [--splits 500]

First table: thresholds certified on validation as `btinet predict` certifies them, then counted on the test split, with
exact (Clopper-Pearson, two-sided 95 %) intervals of the achieved risk.

Second table: how often the promise is broken, over many calibrations. What chose scores and order (``learn``) stays;
the samples that certify and those of the test split, which neither has seen, are pooled, and new certifying sets are
drawn from the pool. Over the pool the risk of any rule is known, so a promise is kept or broken without doubt:

* ``drawn``: with replacement, hence independent samples of a population of known risk: the guarantee's own
  assumptions. Broken in at most 1 - confidence of the draws, but for the binomial error of the number of draws.
* ``split``: without replacement, as one would divide the pool again. ``broken`` counts as before, over the whole pool.
  ``rest above`` counts how often the share of failures in the rest is above the stated risk; the rest is small, so
  that this happens by chance too where the risk itself is within the promise: it is no test of the promise.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy.stats import binomtest

from btinet.calibration.reliability import Part, Rule, certify, count_accepted
from btinet.inference.calibrate import Calibrated
from btinet.inference.package import open_package
from btinet.storage import Storage

RISKS = (0.05, 0.1, 0.2, 0.3)
FALSE_ALARMS = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--storage", default="results")
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--splits", type=int, default=500)
    given = parser.parse_args()
    package = open_package(given.run, Storage(given.storage), torch.device("cpu"))
    print(f"{package.info.run_id}, confidence {given.confidence:g}")
    print_achieved(package.calibrated, given.confidence)
    print_broken(package.calibrated, given.confidence, given.splits)


def print_achieved(calibrated: Calibrated, confidence: float) -> None:
    """The rules of `btinet predict`, counted on the test split."""
    calibration, held_out = calibrated.calibration, calibrated.test.part
    sizes = [len(part.mask_score) for part in (calibration.learn, calibration.test, held_out)]
    print("learn {}, certify {}, test split {} samples".format(*sizes))
    print(f"scores: {calibration.mask}; {calibration.classes}")
    everything = Rule(1, 0, 0, np.inf, np.inf, np.inf if calibration.classes else None, 0, 0, (), ())
    count, wrong = count_accepted(everything, held_out)
    print(f"without a rule, of {count}: " + ", ".join(achieved(failures, count) for failures in wrong))
    print("| stated risk | accepted on validation | accepted on test | mask wrong | class wrong |")
    print("|---|---|---|---|---|")
    for risk in RISKS:
        rule = certify(calibration, risk, confidence, FALSE_ALARMS)
        if not rule.is_certified:
            print(f"| {risk:g} | none | {rule} | | |")
            continue
        accepted, failures = count_accepted(rule, held_out)
        cells = [f"{rule.accepted} of {rule.tested}", f"{accepted} of {len(held_out.mask_score)}"]
        print(f"| {risk:g} | " + " | ".join([*cells, *(achieved(failed, accepted) for failed in failures)]) + " |")


def achieved(failures: int, accepted: int) -> str:
    """A share with its exact interval."""
    if not accepted:
        return "–"
    interval = binomtest(failures, accepted).proportion_ci(0.95, "exact")
    return f"{failures} = {failures / accepted:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def print_broken(calibrated: Calibrated, confidence: float, count: int) -> None:
    """New certifying sets from the pool of all samples that chose nothing."""
    calibration = calibrated.calibration
    pool = joined(calibration.test, calibrated.test.part)
    total, tested = len(pool.mask_score), len(calibration.test.mask_score)
    limit = binomtest(round(count * (1 - confidence)), count).proportion_ci(0.95, "exact").high
    print(f"{count} calibrations on {tested} of a pool of {total}; promised: broken in at most {1 - confidence:.1%}")
    print(f"(up to {limit:.1%} is within the 95 % error of {count} calibrations)")
    print("| stated risk | how | certified | mean share accepted | broken | rest above |")
    print("|---|---|---|---|---|---|")
    for risk in RISKS:
        for how in ("drawn", "split"):
            rng = np.random.default_rng(0)
            shares, broken, above = [], 0, 0
            for _ in range(count):
                order = rng.integers(0, total, tested) if how == "drawn" else rng.permutation(total)
                part = taken(pool, order[:tested])
                rule = certify(calibration.model_copy(update={"test": part}), risk, confidence, FALSE_ALARMS)
                if not rule.is_certified:
                    continue
                shares.append(count_accepted(rule, pool)[0] / total)
                broken += exceeds(rule, pool)
                above += how == "split" and exceeds(rule, taken(pool, order[tested:]))
            cells = [f"{len(shares) / count:.1%}", f"{np.mean(shares):.1%}" if shares else "–", f"{broken / count:.1%}"]
            print(f"| {risk:g} | {how} | {' | '.join(cells)} | {f'{above / count:.1%}' if how == 'split' else ''} |")


def exceeds(rule: Rule, part: Part) -> bool:
    """Whether more of the accepted masks, or classes, are wrong than stated."""
    accepted, failures = count_accepted(rule, part)
    return max(failures) > rule.max_risk * accepted


def joined(first: Part, second: Part) -> Part:
    return Part(**{name: (*getattr(first, name), *getattr(second, name)) for name in Part.model_fields})


def taken(part: Part, chosen: np.ndarray) -> Part:
    columns = {name: getattr(part, name) for name in Part.model_fields}
    return Part(**{name: tuple(values[i] for i in chosen) if values else () for name, values in columns.items()})


if __name__ == "__main__":
    main()

"""What the gate's signals and TIM's changes go with (paper Sec. 4.2, E; Figures 2, A2, A8, A11, A15, A18)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from btinet.analysis.resampling import Resampling, Weights
from btinet.analysis.runs import EvaluatedRun
from btinet.analysis.scores import delta, level_values, numbers
from btinet.analysis.significance import pooled_t, spearman, spearman_p
from btinet.analysis.summaries import Entry, Row
from btinet.evaluation.schema import LEVELS

PAIRS = {
    "positives": (
        ("seg_energy", "mc_seg"),
        ("delta", "mc_seg"),
        ("delta", "iou"),
        ("w_seg", "iou"),
    ),
    "all": (("align", "mc_mi"), ("delta", "mc_entropy"), ("delta", "conf")),
}
"""Population -> pairs of a signal at a level and what it may go with: rows of Table A6, panels of Figure A2, and
whether the gate opens on easy or on hard samples (paper notes B1, B2)."""

OTHERS = {
    "mc_seg": "mc_seg_var",
    "mc_mi": "mc_clf_mi",
    "mc_entropy": "mc_clf_entropy",
    "iou": "iou",
    "conf": "conf",
}
"""Names in tables -> columns of the predictions."""

MARK_RHO, MARK_P = 0.3, 0.05
"""The paper ticks a correlation beyond the first with p below the second (paper notes B35)."""

TIM = {"seg_to_clf": "tim_dclf", "clf_to_seg": "tim_dseg"}
"""Direction -> column, less its norm: what TIM adds to the classification vector, or to the decoder's map."""


def correlation_entries(run: EvaluatedRun, resampling: Resampling) -> list[Entry]:
    """Spearman's rho between signals and Monte Carlo dropout's scores, IoU and confidence, on test."""
    entries = []
    for population, pairs in PAIRS.items():
        samples = _population(run.test, population)
        variables = {f"{x} {level}": _signal(samples, x, i) for x, _ in pairs for i, level in enumerate(LEVELS)}
        variables |= {y: numbers(samples[OTHERS[y]]) for _, y in pairs}
        weights = resampling.weights(run.key["dataset"], samples)
        named = {(f"{x} {level}", y): (x, y, level) for x, y in pairs for level in LEVELS}
        reasons = {names: _uncorrelated(*(variables[name] for name in names)) for names in named}
        usable = [names for names, reason in reasons.items() if reason is None]
        found = dict(zip(usable, spearman(variables, usable, weights), strict=True))
        for names, (x, y, level) in named.items():
            rho = found.get(names, np.full(len(weights), np.nan))
            p = spearman_p(rho[0], len(samples))
            defined = not np.isnan(rho[0])
            entries.append(
                Entry(
                    {"x": x, "y": y, "level": level, "population": population},
                    {"n": len(samples)},
                    {"rho": rho},
                    reasons[names],
                    {
                        "p": p if defined else None,
                        "marked": bool(abs(rho[0]) > MARK_RHO and p < MARK_P) if defined else None,
                    },
                )
            )
    return entries


def wrong_correct_entries(run: EvaluatedRun, resampling: Resampling) -> list[Entry]:
    """Mean delta of wrongly and of correctly classified test samples, among all and among those with a mask."""
    names = ("all", "positives") if _has_empty(run.test) else ("all",)
    entries = []
    for name in names:
        samples = _population(run.test, name)
        weights = resampling.weights(run.key["dataset"], samples)
        wrong = None if samples["correct"].null_count else numbers(samples["correct"]) == 0
        for index, level in enumerate(LEVELS):
            values = delta(samples, index)
            entries.append(_wrong_correct({"population": name, "level": level}, values, wrong, weights))
    return entries


def tim_entries(run: EvaluatedRun, resampling: Resampling) -> list[Entry]:
    """How much TIM changes easy and hard samples: the upper and the lower quartile of IoU of test samples with a mask
    (paper notes B36). The quartiles are those of all these samples, also in resamples."""
    samples = _population(run.test, "positives")
    weights = resampling.weights(run.key["dataset"], samples)
    iou = numbers(samples["iou"])
    low, high = np.quantile(iou, [0.25, 0.75]) if len(iou) else (0.0, 0.0)
    entries = []
    for direction, column in TIM.items():
        for norm in ("l1", "l2"):
            for index, level in enumerate(LEVELS):
                values = level_values(samples, f"{column}_{norm}", index)
                missing = "no samples with a mask" if len(iou) == 0 else "the method has no TIM here"
                reason = missing if not np.isfinite(values).all() or len(iou) == 0 else None
                chosen = {"easy": iou >= high, "hard": iou <= low}
                means = {group: _mean(values, weights, members, reason) for group, members in chosen.items()}
                means["easy_minus_hard"] = means["easy"] - means["hard"]
                for group, magnitude in means.items():
                    count = int(chosen[group].sum()) if group in chosen else None
                    within = {"direction": direction, "norm": norm, "level": level, "group": group}
                    entries.append(Entry(within, {"n": count}, {"magnitude": magnitude}, reason))
    return entries


def scatter_rows(run: EvaluatedRun) -> Iterator[Row]:
    """A row a test sample and level, where the run has a gate."""
    test = run.test
    if test["w_seg"].null_count:
        return
    columns = {
        "sample_id": test["sample_id"],
        "has_mask": test["has_mask"],
        "iou": test["iou"],
        "conf": test["conf"],
        "mc": test["mc_seg_var"],
        "correct": test["correct"],
    }
    rows = pa.table(columns).to_pylist()
    for index, level in enumerate(LEVELS):
        signals = zip(delta(test, index), level_values(test, "w_seg", index), strict=True)
        for row, (difference, w_seg) in zip(rows, signals, strict=True):
            yield {**run.key, **row, "level": level, "delta": float(difference), "w_seg": float(w_seg)}


def _wrong_correct(within: Row, values: np.ndarray, wrong: np.ndarray | None, weights: Weights) -> Entry:
    reason = None
    if not np.isfinite(values).all() or len(values) == 0:
        reason = "no gate" if len(values) else "no samples"
    elif wrong is None:
        reason = "the method does not classify"
    elif not wrong.any():
        reason = "no sample is classified wrongly"
    elif wrong.all():
        reason = "all samples are classified wrongly"
    members = np.zeros(len(values), bool) if wrong is None else wrong
    of_wrong, of_correct = (_mean(values, weights, chosen, reason) for chosen in (members, ~members))
    t, p = pooled_t(values[members], values[~members]) if reason is None else (np.nan, np.nan)
    return Entry(
        within,
        {
            "n_wrong": None if wrong is None else int(wrong.sum()),
            "n_correct": None if wrong is None else int((~wrong).sum()),
        },
        {"mean_wrong": of_wrong, "mean_correct": of_correct, "difference": of_wrong - of_correct},
        reason,
        {"t": None if np.isnan(t) else t, "p": None if np.isnan(p) else p},
    )


def _mean(values: np.ndarray, weights: Weights, members: np.ndarray, reason: str | None) -> np.ndarray:
    """Weighted mean of some of the values [n], [m]; NaN where none of them is drawn, or with a reason."""
    if reason:
        return np.full(len(weights), np.nan)
    chosen = weights[:, members].astype(np.float64)
    totals = chosen.sum(1)
    return np.asarray((chosen @ values[members]) / np.where(totals > 0, totals, np.nan))


def _uncorrelated(x: np.ndarray, y: np.ndarray) -> str | None:
    """Why the two have no rank correlation; None if they have."""
    if len(x) < 3:
        return f"{len(x)} samples"
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return "the method lacks one of the two"
    if x.min() == x.max() or y.min() == y.max():
        return "one of the two is the same for all samples"
    return None


def _signal(samples: pa.Table, name: str, level: int) -> np.ndarray:
    return delta(samples, level) if name == "delta" else level_values(samples, name, level)


def _population(test: pa.Table, name: str) -> pa.Table:
    return test.filter(test["has_mask"]) if name == "positives" else test


def _has_empty(test: pa.Table) -> bool:
    return not pc.all(test["has_mask"]).as_py()

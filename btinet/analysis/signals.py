"""How well single-pass signals and Monte Carlo dropout rank failures (paper Sec. 4.2, Tables 2, 3, A3, A4).

A failure is the positive class and a higher score should mean failure. Signals keep the paper's signs (paper
notes B26): ``neg_delta`` and ``neg_align`` are negated, ``w_*`` and ``*_energy`` are not, so an AUROC below
0.5 is a finding and not an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import average_precision_score, roc_auc_score

from btinet.analysis.runs import RUN, EvaluatedRun, over_seeds
from btinet.evaluation.schema import LEVELS

FAILURE_IOU = 0.5
"""A segmentation below this IoU is a failure (Sec. 4.2)."""

MC_SCORE = {"seg": "mc_seg_var", "clf": "mc_clf_entropy"}
"""The Monte Carlo score of each task (paper notes B4)."""

SIGNALS: dict[str, Callable[[pa.Table, int], np.ndarray]] = {
    "w_seg": lambda rows, level: _level(rows, "w_seg", level),
    "w_clf": lambda rows, level: _level(rows, "w_clf", level),
    "neg_delta": lambda rows, level: _level(rows, "w_seg", level) - _level(rows, "w_clf", level),
    "neg_align": lambda rows, level: -_level(rows, "align", level),
    "seg_energy": lambda rows, level: _level(rows, "seg_energy", level),
    "clf_energy": lambda rows, level: _level(rows, "clf_energy", level),
}
"""UPA's signals; each has a score per decoder level. delta = w_clf - w_seg."""

FAILURE_SIGNALS = pa.schema(
    [
        *RUN,
        *(pa.field(name, pa.string()) for name in ("split", "task", "signal", "level")),
        *(pa.field(name, pa.int64()) for name in ("n", "n_failures")),
        *(pa.field(name, pa.float64()) for name in ("auroc", "auprc")),
        pa.field("note", pa.string()),
    ]
)


def failure_signals(runs: list[EvaluatedRun]) -> pa.Table:
    """Every signal of every run, on val and test: one row per (run, split, task, signal, level).

    ``level`` is null for ``mc`` and ``one_minus_conf``. ``auroc`` and ``auprc`` (average precision) are in
    [0, 1], or null where they are undefined; ``note`` then says why.
    """
    rows = [
        {**run.key, "split": split, "task": task, **detection}
        for run in runs
        for split, samples in (("val", run.val), ("test", run.test))
        for task in MC_SCORE
        for detection in _detections(samples, task)
    ]
    return pa.Table.from_pylist(rows, FAILURE_SIGNALS)


def failure_summary(signals: pa.Table) -> pa.Table:
    """:func:`failure_signals` over seeds."""
    return over_seeds(signals, ("n", "n_failures", "auroc", "auprc"), ("split", "task", "signal", "level"))


def detection(failed: np.ndarray | None, score: np.ndarray) -> dict[str, Any]:
    """AUROC (ties count 1/2) and average precision of ``score`` for ``failed``, both of shape [n].

    ``failed`` is None when the method does not do the task; a missing score is NaN.
    """
    result: dict[str, Any] = dict.fromkeys(("n_failures", "auroc", "auprc", "note"))
    result["n"] = len(score)
    if failed is None:
        return result | {"note": "the method does not classify"}
    result["n_failures"] = int(failed.sum())
    unusable = int((~np.isfinite(score)).sum())
    if len(score) == 0:
        return result | {"note": "no samples"}
    if unusable == len(score):
        return result | {"note": "no such score for this method"}
    if unusable:
        return result | {"note": f"score missing or not finite for {unusable} of {len(score)} samples"}
    if not failed.any():
        return result | {"note": "no failures"}
    if failed.all():
        return result | {"note": "all samples are failures"}
    auroc, auprc = roc_auc_score(failed, score), average_precision_score(failed, score)
    return result | {"auroc": float(auroc), "auprc": float(auprc)}


def _detections(samples: pa.Table, task: str) -> Iterator[dict[str, Any]]:
    """Rows of :func:`failure_signals` for one run, split and task, without the columns that name these."""
    failed: np.ndarray | None
    if task == "seg":
        samples = samples.filter(samples["has_mask"])
        failed = _numbers(samples["iou"]) < FAILURE_IOU
    else:
        failed = None if samples["correct"].null_count else _numbers(samples["correct"]) == 0
    for signal, score in SIGNALS.items():
        for index, level in enumerate(LEVELS):
            yield {"signal": signal, "level": level, **detection(failed, score(samples, index))}
    yield {"signal": "mc", "level": None, **detection(failed, _numbers(samples[MC_SCORE[task]]))}
    yield {"signal": "one_minus_conf", "level": None, **detection(failed, 1 - _numbers(samples["conf"]))}


def _level(rows: pa.Table, column: str, level: int) -> np.ndarray:
    return _numbers(pc.list_element(rows[column], level))


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """float64, NaN where null."""
    return np.asarray(column.cast(pa.float64()).to_numpy())

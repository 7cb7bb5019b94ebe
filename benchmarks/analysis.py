"""How long all tables take for a large result set.

    python benchmarks/analysis.py

Generated predictions: two shapes of 20,000 rows. ``experiment``: two datasets x BTI-Net and a joint method x two seeds,
each run with 2,500 rows, half val and half test. ``one run``: all 20,000 rows are test samples of a single BTI-Net run,
in clusters. Marks: under 120 s with 2,000 resamples on two cores. Prints wall and CPU time (CPU is what a busy machine
does not change) and the load beforehand.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

import numpy as np
import pyarrow as pa

from btinet.analysis import analyse
from btinet.analysis.resampling import RESAMPLES
from btinet.evaluation.schema import PREDICTIONS

CLASSES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    given = parser.parse_args()
    part = given.rows // 16
    experiment = pa.concat_tables(
        predictions(dataset, method, seed, split, part)
        for dataset in ("busi", "brisc2025")
        for method in ("btinet", "mtan")
        for seed in (42, 123)
        for split in ("val", "test")
    )
    one_run = predictions("ham10000", "btinet", 42, "test", given.rows)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {given.resamples} resamples")
    for name, rows in (("experiment", experiment), ("one run", one_run)):
        wall, cpu = time.perf_counter(), time.process_time()
        tables = analyse(rows, given.resamples)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        total = sum(map(len, tables.values()))
        print(
            f"{name:10} {len(rows):,} rows -> {len(tables)} tables, {total:,} rows: "
            f"{wall:.1f} s wall, {cpu:.1f} s CPU, peak {peak:.1f} GiB"
        )


def predictions(dataset: str, method: str, seed: int, split: str, n: int) -> pa.Table:
    """Rows with about a fifth of the segmentations and a sixth of the classifications failed."""
    rng = np.random.default_rng([len(dataset), len(method), seed, len(split)])
    difficulty = rng.normal(size=n)
    iou = 1 / (1 + np.exp(difficulty - 1.6 + rng.normal(size=n)))
    correct = difficulty + rng.normal(size=n) < 1.4
    truth = rng.integers(0, CLASSES, n)

    def level(scale: float) -> pa.Array:
        values = 1 / (1 + np.exp(-scale * difficulty[:, None] - rng.normal(size=(n, 4))))
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), 4)

    columns = {
        **dict.fromkeys(("tp", "fp", "fn", "pred_area", "gt_area"), np.full(n, 100)),
        **dict.fromkeys(("iou", "soft_iou"), iou),
        **dict.fromkeys(("dice", "precision", "recall"), 2 * iou / (1 + iou)),
        "sample_id": [f"{split}{i}" for i in range(n)],
        "group_id": [f"{split}{i // 2}" for i in range(n)],
        "y_true": truth,
        "y_pred": np.where(correct, truth, (truth + 1) % CLASSES),
        "correct": correct,
        "conf": 1 / (1 + np.exp(difficulty - 2 + rng.normal(size=n))),
        "has_mask": rng.random(n) < (1 if dataset == "ham10000" else 0.86),
        "empty_pred": np.zeros(n, bool),
        "mask_conf": 1 / (1 + np.exp(difficulty - 2 + rng.normal(size=n))),
        **{name: rng.random(n) for name in ("mc_seg_var", "mc_seg_entropy", "mc_seg_mi")},
        **{name: rng.random(n) for name in ("mc_clf_entropy", "mc_clf_mi", "mc_clf_var")},
        **{name: rng.random(n) for name in ("mc_head_clf_entropy", "mc_head_clf_mi", "mc_head_clf_var")},
    }
    if method == "btinet":
        columns |= {name: level(0.5) for name in ("w_seg", "w_clf", "align", "seg_energy", "clf_energy")}
        columns |= {name: level(0.2) for name in ("tim_dclf_l1", "tim_dclf_l2", "tim_dseg_l1", "tim_dseg_l2")}
    constant = {
        "dataset": dataset,
        "method": method,
        "run_id": f"{dataset}-{method}-{seed}",
        "preset": "paper",
        "variant": "full",
        "seed": seed,
        "split_id": "s",
        "stage": 2,
        "split": split,
    }
    columns |= {name: pa.array([value] * n) for name, value in constant.items()}
    return pa.table(
        [
            pa.array(columns[field.name]).cast(field.type) if field.name in columns else pa.nulls(n, field.type)
            for field in PREDICTIONS
        ],
        schema=PREDICTIONS,
    )


if __name__ == "__main__":
    main()

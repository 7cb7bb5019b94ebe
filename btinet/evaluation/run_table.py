"""``results/runs``: one row about an evaluated run: what it was, where it ran, how it ended."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import yaml

from btinet.config import BoundRun
from btinet.partitions import partition_file, write_partition
from btinet.storage import Storage
from btinet.training.outputs import finished_stage


def run_file(root: Storage, bound: BoundRun) -> Storage:
    return partition_file(root, "runs", bound.run, bound.run_id)


def write_run(
    bound: BoundRun, root: Storage, classes: tuple[str, ...], metrics: dict[str, Any], environment: dict[str, str]
) -> Storage:
    """Write the run's row; returns its file.

    Args:
        bound: a run whose stages are finished.
        root: storage root.
        classes: names of the labels, in order.
        metrics: the evaluation's headline.
        environment: versions and machine of the evaluation.
    """
    run = bound.run
    row: dict[str, Any] = {
        "run_id": bound.run_id,
        "dataset": run.dataset.name,
        "method": run.method,
        "variant": run.variant,
        "preset": run.preset,
        "seed": run.seed,
        "prepared": bound.prepared,
        "split_id": bound.split,
        "classes": list(classes),
        "weights_sha256": bound.weights_sha256,
        "transformer_sha256": bound.transformer_sha256,
        "config": yaml.safe_dump(run.settings.model_dump(mode="json"), sort_keys=False),
        "environment": json.dumps(environment, sort_keys=True),
        **metrics,
    }
    for stage in run.stages:
        receipt = finished_stage(bound, stage, root)
        assert receipt is not None
        names = ("epochs", "best_epoch", "stopped", "val_iou", "val_accuracy", "trained_parameters")
        row |= {f"stage{stage}_{name}": receipt.metrics[name] for name in names}
        row |= {
            "parameters": receipt.metrics["parameters"],
            f"stage{stage}_wall_seconds": receipt.wall_seconds,
            f"stage{stage}_device": receipt.environment["device"],
        }
    file = run_file(root, bound)
    write_partition(file, pa.Table.from_pylist([row]))
    return file

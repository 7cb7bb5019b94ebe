"""Which rows a table is computed from, and how values of single runs are summarised over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from btinet.errors import InputError
from btinet.evaluation.schema import PREDICTIONS
from btinet.partitions import read_partitions
from btinet.storage import Storage

RUN = pa.schema(
    [pa.field(name, pa.string()) for name in ("run_id", "dataset", "method", "variant", "preset")]
    + [pa.field("seed", pa.int32()), pa.field("stage", pa.int8())]
)
"""What identifies a run in a table with one or more rows per run; ``stage`` is the one evaluated."""

SETTING = ("dataset", "method", "variant", "preset", "stage")
"""What a row summarised over seeds stands for. With the stage, so that runs evaluated after different stages
are never averaged."""


@dataclass(frozen=True)
class EvaluatedRun:
    """One run's predictions after its last stage."""

    key: dict[str, Any]
    """The values of :data:`RUN`."""
    val: pa.Table
    test: pa.Table


def load_predictions(storage_root: Storage, run_ids: Sequence[str]) -> pa.Table:
    """Read the predictions of these runs, and no others', in the order given; what earlier versions lack is null.

    Raises:
        InputError: no run is asked for, or some have no predictions; all of these are named.
    """
    if not run_ids:
        raise InputError("there are no runs to analyse")
    folder = storage_root / "results" / "predictions"
    files = {file.name.removesuffix(".parquet"): file for file in folder.find(".parquet")}
    missing = [run_id for run_id in run_ids if run_id not in files]
    if missing:
        raise InputError(f"{folder}: no predictions of {', '.join(missing)}; evaluate these runs first")
    return read_partitions((files[run_id] for run_id in dict.fromkeys(run_ids)), PREDICTIONS)


def evaluated_runs(predictions: pa.Table) -> list[EvaluatedRun]:
    """Each run's val and test rows of the highest stage it has, in order of first appearance.

    Raises:
        InputError: two runs differ in nothing but their settings' hash, and a mean over seeds would mix them; or two
            of one dataset, preset and seed were not tested on the same images, and their difference says nothing.
    """
    runs = []
    seen: dict[tuple[Any, ...], str] = {}
    for run_id in pc.unique(predictions["run_id"]).to_pylist():
        rows = predictions.filter(pc.equal(predictions["run_id"], run_id))
        rows = rows.filter(pc.equal(rows["stage"], pc.max(rows["stage"])))
        key = rows.select(RUN.names).slice(0, 1).to_pylist()[0]
        identity = tuple(value for name, value in key.items() if name not in ("run_id", "stage"))
        if identity in seen:
            raise InputError(
                f"runs {seen[identity]} and {run_id} are the same dataset, method, variant, preset and seed "
                "with different settings: analyse them as two experiments"
            )
        seen[identity] = run_id
        val, test = (rows.filter(pc.equal(rows["split"], split)) for split in ("val", "test"))
        runs.append(EvaluatedRun(key, val, test))
    _require_same_tests(runs)
    return runs


def _require_same_tests(runs: Sequence[EvaluatedRun]) -> None:
    first: dict[tuple[Any, ...], tuple[str, set[str]]] = {}
    for run in runs:
        samples = set(run.test["sample_id"].to_pylist())
        group = tuple(run.key[name] for name in ("dataset", "preset", "seed"))
        other, others = first.setdefault(group, (run.key["run_id"], samples))
        if samples != others:
            raise InputError(
                f"runs {other} and {run.key['run_id']} were tested on {len(others)} and {len(samples)} images, of "
                f"which {len(samples & others)} are the same: their difference says nothing; "
                "analyse them as two experiments"
            )

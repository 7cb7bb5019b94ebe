"""What the evaluation of a run leaves in storage, and whether it is done; told without loading torch."""

from __future__ import annotations

from typing import Any

from btinet.config import BoundRun, json_hash
from btinet.evaluation.schema import PREDICTIONS
from btinet.partitions import partition_file
from btinet.receipts import Receipt, valid_receipt
from btinet.storage import Storage
from btinet.training.outputs import finished_stage, run_folder


def predictions_file(root: Storage, bound: BoundRun) -> Storage:
    return partition_file(root, "predictions", bound.run, bound.run_id)


def evaluation_receipt_file(root: Storage, run_id: str) -> Storage:
    return run_folder(root, run_id) / "evaluation.json"


def evaluation_inputs(bound: BoundRun, root: Storage) -> dict[str, Any]:
    """What the predictions follow from: the weights, how they are evaluated, and which columns are asked for."""
    receipts = {stage: finished_stage(bound, stage, root) for stage in bound.run.stages}
    weights = {
        f"stage{stage}": [output.sha256 for path, output in receipt.outputs.items() if path.endswith("safetensors")]
        for stage, receipt in receipts.items()
        if receipt is not None
    }
    columns = json_hash(PREDICTIONS.names)[:10]
    return {
        "run_id": bound.run_id,
        "weights": weights,
        "columns": columns,
        **bound.run.settings.evaluation.model_dump(),
    }


def finished_evaluation(bound: BoundRun, root: Storage) -> Receipt | None:
    """The evaluation's receipt, if it is done with these settings and its outputs are in place."""
    return valid_receipt(evaluation_receipt_file(root, bound.run_id), root, evaluation_inputs(bound, root))

"""What the stages of a run leave in storage, and which of them are done; told without loading torch."""

from __future__ import annotations

from typing import Any

from btinet.config import BoundRun
from btinet.partitions import partition_file
from btinet.receipts import Receipt, valid_receipt
from btinet.storage import Storage

MODEL_FILE = "model.safetensors"


def run_folder(root: Storage, run_id: str) -> Storage:
    return root / "runs" / run_id


def declare(bound: BoundRun, root: Storage) -> None:
    """Leave what the run is, by which ``btinet status`` and ``btinet runs`` find it."""
    (run_folder(root, bound.run_id) / "run.json").write_json(bound.model_dump(mode="json"))


def stage_folder(root: Storage, run_id: str, stage: int) -> Storage:
    return run_folder(root, run_id) / f"stage{stage}"


def epochs_file(root: Storage, bound: BoundRun, stage: int) -> Storage:
    """The run's history, a row an epoch, written as it happens."""
    return partition_file(root, "epochs", bound.run, f"{bound.run_id}-stage{stage}")


def weights_file(root: Storage, sha256: str) -> Storage:
    """Where initial weights are kept for the workers, by content."""
    return root / "weights" / f"{sha256}.safetensors"


def stage_inputs(bound: BoundRun, stage: int) -> dict[str, Any]:
    """What a stage's outputs follow from."""
    return {"run_id": bound.run_id, "stage": stage, "prepared": bound.prepared, "split": bound.split}


def finished_stage(bound: BoundRun, stage: int, root: Storage) -> Receipt | None:
    """The stage's receipt, if it is done and its outputs are in place."""
    folder = stage_folder(root, bound.run_id, stage)
    return valid_receipt(folder / "receipt.json", root, stage_inputs(bound, stage))

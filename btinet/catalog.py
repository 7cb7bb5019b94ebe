"""The runs that a storage holds, found from what they left there: run.json and receipts."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import ValidationError

from btinet.config import BoundRun
from btinet.errors import InputError
from btinet.evaluation.outputs import evaluation_receipt_file, predictions_file
from btinet.evaluation.run_table import run_file
from btinet.receipts import Receipt, read_receipt
from btinet.storage import Storage
from btinet.training.outputs import epochs_file, finished_stage, run_folder


class StoredRun(NamedTuple):
    """A run and what is done of it."""

    root: Storage
    bound: BoundRun
    stages: dict[int, Receipt]
    """Of the finished stages."""
    evaluation: Receipt | None

    @property
    def status(self) -> str:
        """How far it is, in a word or two."""
        if self.evaluation is not None:
            return "evaluated"
        if len(self.stages) == len(self.bound.run.stages):
            return "trained"
        return f"stage {max(self.stages)} done" if self.stages else "started"

    @property
    def files(self) -> list[Storage]:
        """All that is this run's alone: its folder and its result files."""
        results = [
            predictions_file(self.root, self.bound),
            run_file(self.root, self.bound),
            *(epochs_file(self.root, self.bound, stage) for stage in self.bound.run.stages),
        ]
        return [run_folder(self.root, self.bound.run_id), *(file for file in results if file.exists())]


def list_runs(root: Storage) -> list[StoredRun]:
    """Every run in this storage, by id."""
    files = [folder / "run.json" for folder in (root / "runs").children()]
    return [_read(root, file) for file in files if file.exists()]


def find_run(reference: str, root: Storage) -> StoredRun:
    """The run of this id, key (``phantom/btinet/full/42``) or URL of its folder (``.../runs/<run_id>``).

    Args:
        root: storage that ids and keys are looked up in; a URL names its own.

    Raises:
        InputError: there is none, or several have this key.
    """
    folder = Storage(reference, root.endpoint)
    if (folder / "run.json").exists():
        return _read(Storage(folder.url.removesuffix(f"/runs/{folder.name}"), folder.endpoint), folder / "run.json")
    if (by_id := run_folder(root, reference) / "run.json").exists():
        return _read(root, by_id)
    runs = list_runs(root)
    found = [run for run in runs if run.bound.run.key == reference]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(run.bound.run_id for run in found)
        raise InputError(f"{reference}: {len(found)} runs in {root} differ in settings or numerics; name one of {ids}")
    known = f"it holds {', '.join(run.bound.run_id for run in runs[:6])}" if runs else "it holds no run"
    raise InputError(f"{reference}: neither a run's folder nor a run in {root}; {known}{', ...' * (len(runs) > 6)}")


def _read(root: Storage, file: Storage) -> StoredRun:
    try:
        bound = BoundRun.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise InputError(f"{file}: not a run of this version of btinet: {error}") from error
    receipts = {stage: finished_stage(bound, stage, root) for stage in bound.run.stages}
    stages = {stage: receipt for stage, receipt in receipts.items() if receipt is not None}
    evaluation = read_receipt(evaluation_receipt_file(root, bound.run_id))
    return StoredRun(root, bound, stages, evaluation)

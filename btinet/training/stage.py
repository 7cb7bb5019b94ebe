"""One stage of one run: prepared data in, best weights, history and receipt out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import torch
from safetensors.torch import load_file, save

from btinet.config import BoundRun
from btinet.datasets.prepared import open_prepared
from btinet.datasets.splits import load_split
from btinet.errors import InputError
from btinet.models.method import Method
from btinet.models.place import place
from btinet.models.registry import build
from btinet.partitions import write_partition
from btinet.progress import Progress, ProgressFile, Row
from btinet.ranks import Ranks
from btinet.receipts import Receipt, fetch_output, write_receipt
from btinet.storage import Storage
from btinet.training.checkpoint import Checkpoints
from btinet.training.data import SplitData
from btinet.training.loop import Trained, fit
from btinet.training.outputs import (
    MODEL_FILE,
    declare,
    epochs_file,
    finished_stage,
    stage_folder,
    stage_inputs,
    weights_file,
)
from btinet.training.tasks import Stage1Task, Stage2Task, Task


def load_model(bound: BoundRun, stage: int, root: Storage, classes: int) -> Method:
    """The model as it was at the best epoch of a finished stage, on the CPU, in evaluation mode.

    Raises:
        InputError: the stage is not finished, or its weights do not match its receipt.
    """
    receipt = require_stage(bound, stage, root)
    model = build(bound.run.method, bound.run.settings.model, classes)
    with tempfile.TemporaryDirectory() as scratch:
        model.load_state_dict(load_file(fetch_output(receipt, root, MODEL_FILE, Path(scratch))))
    return model.eval()


def require_stage(bound: BoundRun, stage: int, root: Storage) -> Receipt:
    """The receipt of a finished stage.

    Raises:
        InputError: the stage is not finished.
    """
    receipt = finished_stage(bound, stage, root)
    if receipt is None:
        command = f"btinet train {bound.run.key} --stage {stage}"
        raise InputError(f"stage {stage} of {bound.run_id} is not finished: run `{command}` first")
    return receipt


def train_stage(
    bound: BoundRun,
    stage: int,
    root: Storage,
    device: torch.device,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Receipt | None:
    """Train a stage, or find that it is done; every rank calls this, and the first one writes.

    Stage 1 trained anew, because an output of it is missing, takes stage 2 with it when it ends.

    Args:
        bound: the run.
        stage: 1 or 2; 2 needs a finished stage 1.
        root: storage root.
        device: where to train.
        on_progress: called on the first rank after every step.

    Returns:
        The receipt; None on ranks other than the first.
    """
    ranks, folder = Ranks(), stage_folder(root, bound.run_id, stage)
    checkpoints = Checkpoints(folder / "checkpoints")
    if (done := finished_stage(bound, stage, root)) is not None:
        if ranks.is_first:
            checkpoints.remove()  # what ended this stage's process right after the receipt left them
        return done
    settings = bound.run.settings
    if settings.train.batch_size % ranks.size:
        raise InputError(
            f"train.batch_size {settings.train.batch_size} cannot be shared by {ranks.size} workers equally"
        )
    if ranks.size > 1 and settings.model.gate == "random":
        raise InputError(
            "model.gate: random draws the gates of all validation images in one sequence, which workers cannot share: "
            "train this variant with resources.workers 1"
        )
    if ranks.is_first:
        declare(bound, root)

    prepared = open_prepared(root, bound.run.dataset.name, bound.prepared)
    split = load_split(root, prepared, bound.run.dataset.split, bound.run.seed)
    train, val = (SplitData(prepared, split.rows(name), device) for name in ("train", "val"))
    if len(train) < settings.train.batch_size:
        raise InputError(
            f"dataset {bound.run.dataset.name!r}: {len(train)} training samples do not fill one batch of "
            f"{settings.train.batch_size}; raise max_samples or lower train.batch_size"
        )
    if not val.lesions:
        raise InputError(
            f"dataset {bound.run.dataset.name!r}: none of the {len(val)} validation samples of split {split.id} has a "
            "lesion, by whose IoU the best epoch is chosen; add images with a mask, or move some to val"
        )
    task = _task(bound, stage, root, len(prepared.manifest.classes))
    place(task, device)

    progress_file = ProgressFile(folder / "progress.json")

    def on_step(progress: Progress) -> None:
        on_progress(progress)
        progress_file.write({"run": bound.run.key, "progress": progress._asdict()}, progress.step == progress.steps)

    trained = fit(
        task,
        train,
        val,
        settings.train,
        bound.run.seed,
        checkpoints,
        on_step,
        lambda history: write_partition(epochs_file(root, bound, stage), _history_table(bound, history)),
    )
    if not ranks.is_first:
        return None
    receipt = _publish(bound, stage, root, task, trained, device)
    checkpoints.remove()
    return receipt


def _task(bound: BoundRun, stage: int, root: Storage, classes: int) -> Task:
    settings = bound.run.settings
    if stage == 2:
        return Stage2Task(load_model(bound, 1, root, classes), settings.loss)
    torch.manual_seed(bound.run.seed)
    with tempfile.TemporaryDirectory() as scratch:
        paths = [
            _download_weights(root, sha256, Path(scratch))
            for sha256 in (bound.weights_sha256, bound.transformer_sha256)
        ]
        model = build(bound.run.method, settings.model, classes, *paths)
    return Stage1Task(model, settings.loss)


def _download_weights(root: Storage, sha256: str | None, folder: Path) -> Path | None:
    if sha256 is None:
        return None
    path = folder / f"{sha256}.safetensors"
    weights_file(root, sha256).download(path)
    return path


def _history_table(bound: BoundRun, history: list[Row]) -> pa.Table:
    run = bound.run
    names = {
        "run_id": bound.run_id,
        "dataset": run.dataset.name,
        "method": run.method,
        "variant": run.variant,
    }
    return pa.Table.from_pylist([{**names, "seed": run.seed, **row} for row in history])


def _publish(
    bound: BoundRun,
    stage: int,
    root: Storage,
    task: Task,
    trained: Trained,
    device: torch.device,
) -> Receipt:
    """Write the best weights as a whole model, the history and the receipt; then the checkpoints have served."""
    folder = stage_folder(root, bound.run_id, stage)
    if stage == 1:  # a stage 2 that is there was trained on the weights that are replaced now
        stage_folder(root, bound.run_id, 2).remove()
    task.trained.load_state_dict(trained.best_weights)
    weights = {name: tensor.cpu().contiguous() for name, tensor in task.model.state_dict().items()}
    (folder / MODEL_FILE).write_bytes(save(weights))
    # once more: a process that ended after its last checkpoint has not written the last epoch
    write_partition(epochs_file(root, bound, stage), _history_table(bound, trained.history))
    best = trained.history[trained.best_epoch - 1]
    return write_receipt(
        folder / "receipt.json",
        root,
        f"stage{stage}",
        stage_inputs(bound, stage),
        [folder / MODEL_FILE, epochs_file(root, bound, stage)],
        {
            "epochs": len(trained.history),
            "best_epoch": trained.best_epoch,
            "stopped": trained.stopped,
            "val_iou": best["val_iou"],
            "val_accuracy": best.get("val_accuracy"),
            "parameters": sum(parameter.numel() for parameter in task.model.parameters()),
            "trained_parameters": sum(parameter.numel() for parameter in task.trained.parameters()),
        },
        sum(row["seconds"] for row in trained.history),
        torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    )

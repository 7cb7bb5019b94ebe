"""A run's steps as cluster jobs. The work itself is ``btinet.training`` and ``btinet.evaluation``, unchanged."""

from __future__ import annotations

from collections.abc import Callable

import btinet.cluster.session  # noqa: F401  isort: skip  (sets what Ray reads when it is imported)
import ray
import ray.train
import ray.train.torch

from btinet.cluster.worker import evaluate_worker, train_worker
from btinet.config import BoundRun, ResourceSettings
from btinet.errors import InputError
from btinet.evaluation.evaluate import OnBatch, finished_evaluation
from btinet.progress import watching
from btinet.receipts import Receipt
from btinet.storage import Storage
from btinet.training.loop import Progress
from btinet.training.stage import finished_stage, run_folder, stage_folder


class JobError(Exception):
    """A cluster job ended without its result."""


def train_on_cluster(
    bound: BoundRun,
    stage: int,
    root: Storage,
    resources: ResourceSettings,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Receipt:
    """Train a stage as a Ray Train job named after the run, or find that it is done.

    A lost worker is replaced and goes on from the last epoch's checkpoint, ``resources.max_failures`` times. What a
    repetition cannot mend (bad input, a loss that is not finite) ends the job at once.

    Raises:
        InputError: as raised by the training, in the worker.
        JobError: the job failed more often than allowed.
    """
    if (done := finished_stage(bound, stage, root)) is not None:
        return done
    _require_connection()
    folder = stage_folder(root, bound.run_id, stage)
    (folder / "failure.json").remove()
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "bound": bound.model_dump(mode="json"),
            "stage": stage,
            "storage": root.reference,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=_resources(resources),
        ),
        run_config=ray.train.RunConfig(
            name=f"{bound.run_id}-stage{stage}",
            storage_path=(root / "ray").path,
            storage_filesystem=root.arrow_filesystem(),
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
        ),
    )
    with watching(folder / "progress.json", lambda content: on_progress(Progress(**content["progress"]))):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise JobError(
                f"{bound.run_id} stage {stage}: the job failed more than {resources.max_failures} times; run again to "
                f"go on from its last checkpoint. The last error: {error}"
            ) from error
    if (folder / "failure.json").exists():
        raise InputError((folder / "failure.json").read_json()["message"])
    receipt = finished_stage(bound, stage, root)
    if receipt is None:
        raise JobError(f"{bound.run_id} stage {stage}: the job ended but left no receipt in {folder}")
    return receipt


def evaluate_on_cluster(
    bound: BoundRun, root: Storage, resources: ResourceSettings, on_batch: OnBatch = lambda done, total: None
) -> Receipt:
    """Evaluate a run as a Ray task on one worker's resources, or find that it is done."""
    if (done := finished_evaluation(bound, root)) is not None:
        return done
    _require_connection()
    task = ray.remote(evaluate_worker).options(
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker,
        max_retries=resources.max_failures,
        name=f"{bound.run_id}-evaluation",
    )
    reference = task.remote(bound.model_dump(mode="json"), root.reference)
    progress = run_folder(root, bound.run_id) / "evaluation-progress.json"
    try:
        with watching(progress, lambda content: on_batch(content["done"], content["total"])):
            return Receipt.model_validate(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from error
        raise


def _require_connection() -> None:
    """Ray would otherwise start a cluster of its own, for instance after a cancellation has ended ours."""
    if not ray.is_initialized():
        raise JobError("not connected to Ray: the session has ended, or none was opened (btinet.cluster.session)")


def _resources(resources: ResourceSettings) -> dict[str, float]:
    return {"CPU": resources.cpus_per_worker} | (
        {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    )

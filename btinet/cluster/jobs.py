"""A run's steps on the Ray cluster that this process is connected to.

The work itself is ``btinet.training`` and ``btinet.evaluation``, unchanged.
"""

from __future__ import annotations

from collections.abc import Callable

import btinet.cluster.session  # noqa: F401  isort: skip  (sets what Ray reads when it is imported)
import ray
import ray.train
import ray.train.torch

from btinet.cluster.worker import evaluate_worker, train_worker
from btinet.config import BoundRun, ResourceSettings
from btinet.errors import InputError, JobError
from btinet.evaluation.evaluate import OnBatch, finished_evaluation
from btinet.progress import read_failure, watching
from btinet.receipts import Receipt
from btinet.status import EVALUATION, failure_file, progress_file
from btinet.storage import Storage
from btinet.training.loop import Progress
from btinet.training.stage import finished_stage


class NotConnectedError(JobError):
    """The cluster is gone: trying again is of no use."""


def run_on_cluster(
    bound: BoundRun,
    root: Storage,
    resources: ResourceSettings,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_batch: OnBatch = lambda done, total: None,
) -> None:
    """All steps of a run that are not done yet, from its first stage to its predictions."""
    for stage in bound.run.stages:
        train_on_cluster(bound, stage, root, resources, on_progress)
    evaluate_on_cluster(bound, root, resources, on_batch)


def train_on_cluster(
    bound: BoundRun,
    stage: int,
    root: Storage,
    resources: ResourceSettings,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Receipt:
    """Train a stage as a Ray Train run named after the run, or find that it is done.

    A lost worker is replaced and goes on from the last epoch's checkpoint, ``resources.max_failures`` times. What a
    repetition cannot mend (bad input, a loss that is not finite) ends it at once.

    Raises:
        InputError: as raised by the training, in the worker.
        JobError: it failed more often than allowed.
    """
    if (done := finished_stage(bound, stage, root)) is not None:
        return done
    _require_connection()
    failure_file(root, bound.run_id).remove()
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
    file = progress_file(root, bound.run_id, f"stage{stage}")
    with watching(file, lambda content: on_progress(Progress(**content["progress"]))):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            last = read_failure(failure_file(root, bound.run_id)) or error
            raise JobError(
                f"{bound.run_id} stage {stage}: it failed more than {resources.max_failures} times; run again to go "
                f"on from its last checkpoint. The last error: {last}"
            ) from error
    return _receipt_or_failure(finished_stage(bound, stage, root), bound, f"stage{stage}", root)


def evaluate_on_cluster(
    bound: BoundRun, root: Storage, resources: ResourceSettings, on_batch: OnBatch = lambda done, total: None
) -> Receipt:
    """Evaluate a run as a Ray task on one worker's resources, or find that it is done."""
    if (done := finished_evaluation(bound, root)) is not None:
        return done
    _require_connection()
    failure_file(root, bound.run_id).remove()
    task = ray.remote(evaluate_worker).options(
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker,
        max_retries=resources.max_failures,
        retry_exceptions=True,
        name=f"{bound.run_id}-evaluation",
    )
    reference = task.remote(bound.model_dump(mode="json"), root.reference)
    file = progress_file(root, bound.run_id, EVALUATION)
    with watching(file, lambda content: on_batch(content["done"], content["total"])):
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            raise JobError(f"{bound.run_id} evaluation: {error}") from error
    return _receipt_or_failure(finished_evaluation(bound, root), bound, EVALUATION, root)


def _receipt_or_failure(receipt: Receipt | None, bound: BoundRun, step: str, root: Storage) -> Receipt:
    if receipt is not None:
        return receipt
    failure = read_failure(failure_file(root, bound.run_id))
    if failure is not None:
        raise InputError(f"{bound.run.key}: {failure}")
    raise JobError(f"{bound.run_id} {step}: it ended but left no receipt")


def _require_connection() -> None:
    """Ray would otherwise start a cluster of its own, for instance after a cancellation has ended ours."""
    if not ray.is_initialized():
        raise NotConnectedError("not connected to Ray: the session has ended (btinet.cluster.session)")


def _resources(resources: ResourceSettings) -> dict[str, float]:
    return {"CPU": resources.cpus_per_worker} | (
        {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    )

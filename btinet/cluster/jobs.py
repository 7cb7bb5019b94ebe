"""A run's steps on the Ray cluster that this process is connected to.

The work itself is ``btinet.training`` and ``btinet.evaluation``, unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import btinet.cluster.session  # noqa: F401  isort: skip  (sets what Ray reads when it is imported)
import ray
import ray.train
import ray.train.torch

from btinet.cluster.worker import run_worker
from btinet.config import BoundRun, ResourceSettings
from btinet.errors import InputError, JobError, NotConnectedError
from btinet.progress import Failure, read_failure
from btinet.status import EVALUATION, failure_file, finished_step, steps
from btinet.storage import Storage
from btinet.training.outputs import declare


def run_on_cluster(bound: BoundRun, root: Storage, resources: ResourceSettings) -> None:
    """All steps of a run that are not done yet: a Ray Train run a stage, of which the last evaluates, too.

    To start one takes a quarter of a minute. Several workers do not evaluate together: then it is one of its own.
    """
    *before, last, evaluation = ([step] for step in steps(bound.run))
    runs = [*before, last + evaluation] if resources.workers == 1 else [*before, last, evaluation]
    for wanted in runs:
        steps_on_cluster(bound, wanted, root, resources)


def begin(bound: BoundRun, root: Storage) -> None:
    """Declare the run before it trains; its last failure is past."""
    declare(bound, root)
    failure_file(root, bound.run_id).remove()


def last_failure(bound: BoundRun, root: Storage) -> Failure | None:
    """What the run last failed of.

    Raises:
        InputError: a repetition cannot mend it.
    """
    failure = read_failure(failure_file(root, bound.run_id))
    if failure is not None and failure.is_final:
        raise InputError(f"{bound.run.key}: {failure}")
    return failure


def steps_on_cluster(bound: BoundRun, wanted: Sequence[str], root: Storage, resources: ResourceSettings) -> None:
    """Do the wanted steps that are not done yet as a Ray Train run, named after the run and the first of them.

    A lost worker is replaced and goes on from the last epoch's checkpoint, ``resources.max_failures`` times. What a
    repetition cannot mend (bad input, a loss that is not finite) ends it at once.

    Args:
        bound: the run.
        wanted: one or more of :func:`btinet.status.steps`, in that order; the same processes do all of them.
        root: storage root.
        resources: of its workers.

    Raises:
        InputError: as raised by the step, in the worker.
        JobError: it failed more often than allowed.
    """
    pending = [step for step in wanted if finished_step(bound, step, root) is None]
    if not pending:
        return
    _require_connection()
    begin(bound, root)
    trainer = ray.train.torch.TorchTrainer(
        run_worker,
        train_loop_config={
            "bound": bound.model_dump(mode="json"),
            "steps": pending,
            "storage": root.reference,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=1 if pending == [EVALUATION] else resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=_resources(resources),
        ),
        run_config=ray.train.RunConfig(
            name=f"{bound.run_id}-{pending[0]}",
            storage_path=(root / "ray").path,
            storage_filesystem=root.arrow_filesystem(),
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        last = last_failure(bound, root) or error
        raise JobError(
            f"{bound.run_id} {pending[0]}: it failed more than {resources.max_failures} times; run again to go on from "
            f"its last checkpoint. The last error: {last}"
        ) from error
    for step in pending:
        if finished_step(bound, step, root) is None:
            last_failure(bound, root)
            raise JobError(f"{bound.run_id} {step}: it ended but left no receipt")


def _require_connection() -> None:
    """Ray would otherwise start a cluster of its own, for instance after a cancellation has ended ours."""
    if not ray.is_initialized():
        raise NotConnectedError("not connected to Ray: the session has ended (btinet.cluster.session)")


def _resources(resources: ResourceSettings) -> dict[str, float]:
    return {"CPU": resources.cpus_per_worker} | (
        {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    )

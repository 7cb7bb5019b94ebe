"""The runs of a search, trained by Ray Tune: as many at once as the cluster holds."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import btinet.cluster.session  # noqa: F401  isort: skip  (sets what Ray reads when it is imported)

# read by Tune: no files of its own for every trial, no tables of its own, and Ctrl-C is ours
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
import ray
from ray import tune

from btinet.config import BoundRun, ResourceSettings
from btinet.errors import InputError
from btinet.storage import Storage

# would warn that the files that we have no use for are missing
logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)

OnMessage = Callable[[BoundRun, str], None]


def train_with_tune(
    name: str, bounds: Sequence[BoundRun], root: Storage, resources: ResourceSettings, on_message: OnMessage
) -> dict[str, str]:
    """Train all stages of these runs, each in one process with ``resources`` of one worker.

    A run goes on from its last checkpoint, whoever left it, so that nothing of Tune's own records is read again. A
    lost process is replaced ``resources.max_failures`` times.

    Args:
        name: of the search.
        bounds: runs that are not finished.
        on_message: called with a run and its progress after every epoch, and its receipt after every stage.

    Returns:
        run_id -> why it failed, for those that did; the others are finished.

    Raises:
        InputError: the cluster cannot hold one run.
    """
    needed = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    total = ray.cluster_resources()
    if any(total.get(kind, 0) < amount for kind, amount in needed.items()):
        raise InputError(
            f"resources: a trial needs {needed['CPU']:g} CPU(s) and {needed['GPU']:g} GPU(s), and the cluster has "
            f"{total.get('CPU', 0):g} and {total.get('GPU', 0):g}: lower resources.cpus_per_worker or gpus_per_worker"
        )
    by_id = {bound.run_id: bound for bound in bounds}
    trainable = tune.with_parameters(
        _train_run,
        bounds={run_id: bound.model_dump(mode="json") for run_id, bound in by_id.items()},
        storage=root.reference,
    )
    watcher = _Watcher(by_id, on_message)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": needed["CPU"], "gpu": needed["GPU"]}),
        param_space={"run_id": tune.grid_search(list(by_id))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=resources.max_parallel_runs,
            trial_name_creator=lambda trial: trial.config["run_id"],
            trial_dirname_creator=lambda trial: trial.config["run_id"],
        ),
        run_config=tune.RunConfig(
            name=f"tune-{name}",
            storage_path=(root / "ray").path,
            storage_filesystem=root.arrow_filesystem(),
            failure_config=tune.FailureConfig(max_failures=resources.max_failures),
            callbacks=[watcher],
            verbose=0,
        ),
    )
    results = tuner.fit()
    for result in (results[number] for number in range(len(results))):
        if result.error is not None:
            assert result.config is not None
            watcher.failures.setdefault(result.config["run_id"], str(result.error).strip().splitlines()[-1])
    return watcher.failures


class _Watcher(tune.Callback):
    """Passes on what trials report, in this process."""

    def __init__(self, bounds: dict[str, BoundRun], on_message: OnMessage) -> None:
        self.bounds = bounds
        self.on_message = on_message
        self.failures: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, for the record of itself that Tune pickles into storage and that we never read."""
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        run_id = trial.config["run_id"]
        if result.get("failure"):
            self.failures[run_id] = result["failure"]
        self.on_message(self.bounds[run_id], result["message"])


def _train_run(config: dict[str, Any], bounds: dict[str, Any], storage: dict[str, Any]) -> None:
    """What a trial does, in a process of its own. What a repetition cannot mend is reported rather than raised."""
    import torch

    from btinet.training.loop import NonFiniteLossError, Progress
    from btinet.training.stage import train_stage

    bound = BoundRun.model_validate(bounds[config["run_id"]])
    root = Storage(**storage)
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")

    def on_progress(progress: Progress) -> None:
        if progress.step == progress.steps:
            tune.report({"message": str(progress)})

    try:
        for stage in bound.run.stages:
            tune.report({"message": str(train_stage(bound, stage, root, device, on_progress))})
    except (InputError, NonFiniteLossError) as error:
        tune.report({"message": f"failed: {error}", "failure": str(error)})

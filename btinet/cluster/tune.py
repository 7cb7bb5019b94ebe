"""The runs of a search, trained by Ray Tune: as many at once as the cluster holds."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import btinet.cluster.session  # noqa: F401  isort: skip  (sets what Ray reads when it is imported)

# read by Tune: no files of its own for every trial, no tables of its own, and Ctrl-C is ours
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
import ray
from ray import tune

from btinet.config import BoundRun
from btinet.errors import InputError
from btinet.search import Outcome, run_names, unfinished
from btinet.storage import Storage

# would warn that the files that we have no use for are missing
logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
# would print a traceback for every lost process, which _Watcher tells in a line
logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)

OnMessage = Callable[[str], None]


def train_with_tune(name: str, found: list[Outcome], root: Storage, on_message: OnMessage) -> dict[str, str]:
    """Train all stages of the trials' unfinished runs, each in one process with the resources of one worker.

    A run goes on from its last checkpoint, whoever left it, so that nothing of Tune's own records is read again. A
    lost process is replaced ``max_failures`` times.

    Args:
        name: of the search.
        found: the trials, of which a run is unfinished.
        on_message: called with a run's name and its progress after every epoch, its receipt after every stage, or why
            it failed.

    Returns:
        run_id -> why it failed, for those that did; the others are finished.

    Raises:
        InputError: the cluster cannot hold one run.
    """
    resources = found[0].trial.experiment.resources
    needed = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    total = ray.cluster_resources()
    if any(total.get(kind, 0) < amount for kind, amount in needed.items()):
        raise InputError(
            f"resources: a trial needs {needed['CPU']:g} CPU(s) and {needed['GPU']:g} GPU(s), and the cluster has "
            f"{total.get('CPU', 0):g} and {total.get('GPU', 0):g}: lower resources.cpus_per_worker or gpus_per_worker"
        )
    pending = {bound.run_id: bound.model_dump(mode="json") for bound in unfinished(found)}
    trainable = tune.with_parameters(
        _train_run,
        bounds=pending,
        storage=root.reference,
    )
    watcher = _Watcher(run_names(found), on_message)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": needed["CPU"], "gpu": needed["GPU"]}),
        param_space={"run_id": tune.grid_search(list(pending))},
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

    def __init__(self, names: dict[str, str], on_message: OnMessage) -> None:
        self.names = names
        self.on_message = on_message
        self.failures: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, for the record of itself that Tune pickles into storage and that we never read."""
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        run_id = trial.config["run_id"]
        if result.get("failure"):
            self.failures[run_id] = result["failure"]
        self.on_message(f"{self.names[run_id]}  {result['message']}")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.on_message(f"{self.names[trial.config['run_id']]}  lost; another process goes on with it")


def _train_run(config: dict[str, Any], bounds: dict[str, Any], storage: dict[str, Any]) -> None:
    """What a trial does, in a process of its own. What a repetition cannot mend is reported rather than raised."""
    import torch

    from btinet.errors import NonFiniteLossError
    from btinet.progress import Progress
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

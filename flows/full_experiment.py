"""``btinet/full-experiment``: prepare -> stage 1 -> stage 2 -> evaluate for every run, then analysis and report.

``python -m flows.full_experiment experiments/quick.yaml`` runs it here and now; a deployment runs it from a worker.
What is done already is found by its receipts in storage, whoever did it, and is not done again.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Literal

import typer
from prefect import Task, flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, wait
from rich.console import Console

from btinet.binding import bind, check_inputs, open_storage, prepare_dataset, publish_weights
from btinet.cluster.clusters import Cluster, JobCluster, open_cluster
from btinet.config import BoundRun, DatasetSettings, Experiment, ResourceSettings, load_experiment
from btinet.console import fail
from btinet.errors import InputError, JobError, NotConnectedError
from btinet.results import Results, headline_rows, headline_table, method_tables, publish_results
from btinet.status import finished_step, is_finished, steps
from btinet.storage import Storage
from flows.process import cancelling, prefect_api

LOG_SECONDS = 5.0
ROOM_SECONDS = 5.0
"""How often the cluster is asked for room."""


class _WithoutInputErrors(logging.Filter):
    """Drops tracebacks of bad input: the state's message says what is wrong, and where it is mended is not here."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], InputError))


for name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(name).addFilter(_WithoutInputErrors())


def worth_retrying(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Bad input stays bad, and without a cluster there is nothing to retry on."""
    try:
        state.result()
    except (InputError, NotConnectedError):
        return False
    except Exception:
        return True
    return False


@task(name="prepare", task_run_name="prepare {dataset.name}", cache_policy=NO_CACHE)
def prepare_task(experiment: Experiment, dataset: DatasetSettings, root: Storage) -> str:
    """Prepare one dataset; returns its hash."""
    log = _Throttled()
    result = prepare_dataset(experiment, dataset, root, lambda done, total: log(f"{done}/{total} images"))
    manifest = result.manifest
    state = "prepared before" if result.reused else "prepared"
    log.logger.info(f"{state}: {manifest.count} samples at {manifest.image_size} px, hash {manifest.hash}")
    return manifest.hash


@task(
    name="run",
    task_run_name="{bound.run.key}",
    cache_policy=NO_CACHE,
    retry_delay_seconds=10,
    retry_condition_fn=worth_retrying,
)
def run_task(bound: BoundRun, cluster: Cluster, root: Storage, resources: ResourceSettings) -> None:
    """One run from its first stage to its predictions, on the cluster."""
    log = _Throttled()
    cluster.do(bound, root, resources, log)
    log("done", is_due=True)


@flow(name="btinet", flow_run_name="{experiment}", validate_parameters=True)
def full_experiment(
    experiment: str = "experiments/quick.yaml",
    storage_url: str | None = None,
    storage_endpoint: str | None = None,
    data_root: str | None = None,
    weights: str | None = None,
    preset: Literal["paper", "tiny"] | None = None,
    seeds: list[int] | None = None,
) -> dict[str, str]:
    """Run an experiment end to end. Everything left empty is as the experiment file says.

    Args:
        experiment: Experiment file (YAML), relative to the project's folder.
        storage_url: Where results live: file://... or s3://bucket/prefix.
        storage_endpoint: URL of an S3-compatible server, for s3:// storage.
        data_root: Folder that holds the datasets in their official layouts.
        weights: safetensors file of the encoder's ImageNet weights.
        preset: Size of the model and its budget.
        seeds: One run is made for each.
    """
    logger = get_run_logger()
    settings = load_experiment(experiment, data_root=data_root, weights=weights, preset=preset, seeds=seeds)
    check_inputs(settings)
    settings = settings.with_storage(storage_url, storage_endpoint)
    root = open_storage(settings)
    logger.info(f"experiment {settings.name}: {len(settings.runs())} run(s), storage {root}")

    hashes = {dataset.name: prepare_task(settings, dataset, root) for dataset in settings.datasets}
    published = publish_weights(settings, root)
    bounds = [bind(run, hashes[run.dataset.name], published) for run in settings.runs()]
    pending = [bound for bound in bounds if not is_finished(bound, root)]
    if len(pending) < len(bounds):
        logger.info(f"{len(bounds) - len(pending)} of {len(bounds)} run(s) done already")
    failures = _do(settings, pending, root) if pending else []

    finished = [bound for bound in bounds if is_finished(bound, root)]
    results = analyse_task(settings, finished, root) if finished else None
    if failures:
        raise JobError(
            f"{len(failures)} of {len(bounds)} run(s) failed; run again to go on with them:\n" + "\n".join(failures)
        )
    assert results is not None
    return {
        "report": results.report.url,
        "analysis": results.analysis.url,
        "predictions": results.predictions.url,
    }


@task(name="analyse", task_run_name="analyse {experiment.name}", cache_policy=NO_CACHE)
def analyse_task(experiment: Experiment, bounds: list[BoundRun], root: Storage) -> Results:
    """Tables and report over the finished runs, shown as artifacts and on the terminal."""
    logger = get_run_logger()
    results = publish_results(experiment, bounds, root)
    rows = headline_rows(results.tables)
    create_table_artifact(rows, key="results", description=f"Experiment {experiment.name}, test split")
    create_table_artifact(_run_table(bounds, root), key="runs", description=f"Runs of {experiment.name}")
    create_link_artifact(results.report.url, link_text=f"Report of {experiment.name}", key="report")
    Console().print(headline_table(f"experiment {experiment.name}", rows), *method_tables(results.tables))
    logger.info(f"Parquet, per sample: {results.predictions}")
    logger.info(f"Parquet, analysis:   {results.analysis}")
    logger.info(f"Report:              {results.report}")
    return results


def _do(experiment: Experiment, bounds: list[BoundRun], root: Storage) -> list[str]:
    """Connect to the cluster and do these runs there; returns a message for each that failed."""
    logger = get_run_logger()
    with open_cluster() as cluster, cancelling(cluster):
        if cluster.dashboard_url:
            logger.info(f"Ray dashboard: {cluster.dashboard_url} (it asks for a token: `ray get-auth-token`)")
            create_link_artifact(cluster.dashboard_url, link_text="Ray dashboard", key="ray-dashboard")
        if isinstance(cluster, JobCluster):
            logger.info(f"sent to the cluster: {cluster.package}")
        return do_runs(cluster, experiment.resources, bounds, root)


def do_runs(cluster: Cluster, resources: ResourceSettings, bounds: list[BoundRun], root: Storage) -> list[str]:
    """Do runs in their order, as many at once as the cluster has room for; returns a message for each that failed.

    Those that the cluster is doing already come first and need no room: they have theirs.
    """
    room = _Room(cluster, resources)
    get_run_logger().info(f"{len(bounds)} run(s) to do, the cluster has room for {room.total()} at a time")
    run = run_task.with_options(retries=resources.max_failures)
    going = cluster.going(bounds, root)
    bounds = sorted(bounds, key=lambda bound: bound.run_id not in going)
    futures = []
    for bound in bounds:
        if bound.run_id in going:
            room.enter()
        else:
            room.wait()
        futures.append(run.submit(bound, cluster, root, resources))
        futures[-1].add_done_callback(room.leave)
    wait(futures)
    return [
        f"{bound.run.key}: {future.state.message}"
        for bound, future in zip(bounds, futures, strict=True)
        if not future.state.is_completed()
    ]


class _Room:
    """Lets runs in one by one, as the cluster has room: it follows nodes that join and leave, and what others use."""

    def __init__(self, cluster: Cluster, resources: ResourceSettings) -> None:
        self.cluster = cluster
        self.resources = resources
        self.inside = 0
        self.changed = threading.Condition()

    def total(self) -> int:
        """How many runs the cluster holds if it does nothing else.

        Raises:
            InputError: not one.
        """
        places = self.cluster.places(self.resources)
        if places.total < self.resources.workers:
            raise InputError(
                f"resources: a run needs {self.resources.workers} worker(s) with {self.resources.cpus_per_worker} "
                f"CPU(s) and {self.resources.gpus_per_worker} GPU(s) each, and the cluster has room for "
                f"{places.total} of them: lower resources.workers, cpus_per_worker or gpus_per_worker"
            )
        return min(places.total // self.resources.workers, self.resources.max_parallel_runs or places.total)

    def enter(self) -> None:
        """Count a run in that has its places."""
        with self.changed:
            self.inside += 1

    def wait(self) -> None:
        """Wait until one more run fits, and count it in."""
        with self.changed:
            while not self._has_room():
                self.changed.wait(timeout=ROOM_SECONDS)
            self.inside += 1

    def leave(self, future: PrefectFuture[Any]) -> None:
        """Called when a run has ended."""
        with self.changed:
            self.inside -= 1
            self.changed.notify()

    def _has_room(self) -> bool:
        if self.inside >= (self.resources.max_parallel_runs or self.inside + 1):
            return False
        try:
            places = self.cluster.places(self.resources)
        except OSError:  # the cluster's head does not answer now
            return False
        # of ours, some may not have taken their places yet, and between its steps a run has none
        taken = max(places.taken, self.inside * self.resources.workers)
        return taken + self.resources.workers <= places.total


def _run_table(bounds: list[BoundRun], root: Storage) -> list[dict[str, Any]]:
    rows = []
    for bound in bounds:
        receipts = [finished_step(bound, step, root) for step in steps(bound.run)]
        row: dict[str, Any] = {"run": bound.run.key, "run_id": bound.run_id}
        row |= {f"{receipt.step} seconds": receipt.wall_seconds for receipt in receipts if receipt}
        rows.append(row | {"finished": receipts[-1].finished if receipts[-1] else None})
    return rows


class _Throttled:
    """Passes messages to the task run's log: at most one in LOG_SECONDS, and those that are due."""

    def __init__(self) -> None:
        self.logger = get_run_logger()
        self.last = 0.0

    def __call__(self, message: str, is_due: bool = False) -> None:
        if is_due or time.monotonic() - self.last > LOG_SECONDS:
            self.last = time.monotonic()
            self.logger.info(message)


def main(
    experiment: str = typer.Argument("experiments/quick.yaml", help="Experiment file (YAML)."),
    storage: str | None = typer.Option(None, envvar="BTINET_STORAGE", help="A folder, file://... or s3://..."),
    endpoint: str | None = typer.Option(None, help="URL of an S3-compatible server, for s3:// storage."),
    data_root: str | None = typer.Option(None, help="Folder with the datasets; else BTINET_DATA_ROOT."),
    weights: str | None = typer.Option(None, help="The encoder's ImageNet weights; else BTINET_WEIGHTS."),
    preset: str | None = typer.Option(None, help="paper or tiny; by default as in the file."),
    seed: list[int] | None = typer.Option(None, help="Only these seeds; repeat the option for several."),
) -> None:
    """Run an experiment end to end: prepare, train both stages of every run, evaluate, analyse, report.

    With RAY_ADDRESS set it trains on that cluster, else on an embedded one that ends with this command. Done work is
    not done again, so after an interruption the same command goes on.
    """
    fields: dict[str, Any] = {"data_root": data_root, "weights": weights, "preset": preset, "seeds": seed or None}
    try:
        check_inputs(load_experiment(experiment, **fields))  # tell at once, not when Prefect is up
        with prefect_api():
            full_experiment(experiment, storage_url=storage, storage_endpoint=endpoint, **fields)
    except InputError as error:
        fail(error, 2)
    except JobError as error:  # Prefect has logged it with its traceback
        fail(error, 1)


if __name__ == "__main__":
    typer.run(main)

"""``btinet/full-experiment``: prepare -> stage 1 -> stage 2 -> evaluate for every run, then analysis and report.

``python -m flows.full_experiment experiments/quick.yaml`` runs it here and now; a deployment runs it from a worker.
What is done already is found by its receipts in storage, whoever did it, and is not done again.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, NoReturn

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
import httpx
import psutil
import ray
import typer
from prefect import Task, flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, refresh_global_settings_context
from prefect.futures import wait
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled
from prefect.task_runners import ThreadPoolTaskRunner
from rich.console import Console

from btinet.binding import bind, check_inputs, open_storage, prepare_dataset, publish_weights
from btinet.cluster.jobs import evaluate_on_cluster, train_on_cluster
from btinet.cluster.session import Session, ray_session
from btinet.config import BoundRun, DatasetSettings, Experiment, ResourceSettings, load_experiment
from btinet.errors import InputError
from btinet.evaluation.evaluate import finished_evaluation
from btinet.results import Results, headline_rows, headline_table, method_tables, publish_results
from btinet.storage import Storage
from btinet.training.loop import Progress
from btinet.training.stage import finished_stage

LOG_SECONDS = 5.0


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
    except InputError:
        return False
    except Exception:
        return ray.is_initialized()
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
    name="train",
    task_run_name="{bound.run.key} stage {stage}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=worth_retrying,
)
def train_task(bound: BoundRun, stage: int, root: Storage, resources: ResourceSettings) -> None:
    """Train one stage of one run as a Ray Train job."""
    log = _Throttled()
    if (done := finished_stage(bound, stage, root)) is not None:
        log.logger.info(f"done already ({done.finished})")
        return
    receipt = train_on_cluster(bound, stage, root, resources, log.progress)
    log.logger.info(str(receipt))


@task(
    name="evaluate",
    task_run_name="{bound.run.key} evaluation",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=worth_retrying,
)
def evaluate_task(bound: BoundRun, root: Storage, resources: ResourceSettings) -> None:
    """Predict validation and test with every stage of one run."""
    log = _Throttled()
    if (done := finished_evaluation(bound, root)) is not None:
        log.logger.info(f"done already ({done.finished})")
        return
    log(f"evaluating, with {bound.run.settings.evaluation.mc_passes} Monte Carlo dropout passes")
    receipt = evaluate_on_cluster(bound, root, resources, lambda done, total: log(f"batch {done}/{total}"))
    log.logger.info(str(receipt))


@task(name="run", task_run_name="{bound.run.key}", cache_policy=NO_CACHE)
def run_task(bound: BoundRun, root: Storage, resources: ResourceSettings) -> None:
    """One run from its first stage to its predictions."""
    for stage in bound.run.stages:
        train_task(bound, stage, root, resources)
    evaluate_task(bound, root, resources)


@flow(name="runs", flow_run_name="runs of {experiment.name}")
def runs_flow(experiment: Experiment, bounds: list[BoundRun], root: Storage) -> list[str]:
    """Unfinished runs, as many at once as the task runner has threads; returns a message for each that failed."""
    futures = [(bound, run_task.submit(bound, root, experiment.resources)) for bound in bounds]
    try:
        wait([future for _, future in futures])
    except BaseException:  # cancelled by the Prefect worker
        _exit_with_children()
    return [f"{bound.run.key}: {future.state.message}" for bound, future in futures if not future.state.is_completed()]


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
    pending = [bound for bound in bounds if not _is_done(bound, root)]
    if len(pending) < len(bounds):
        logger.info(f"{len(bounds) - len(pending)} of {len(bounds)} run(s) done already")
    failures = _do(settings, pending, root) if pending else []

    finished = [bound for bound in bounds if _is_done(bound, root)]
    results = analyse_task(settings, finished, root) if finished else None
    if failures:
        raise RuntimeError(
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
    """Connect to Ray and do these runs."""
    logger = get_run_logger()
    with ray_session() as session:
        if session.dashboard_url:
            logger.info(f"Ray dashboard: {session.dashboard_url} (it asks for a token: `ray get-auth-token`)")
            create_link_artifact(session.dashboard_url, link_text="Ray dashboard", key="ray-dashboard")
        parallel = _parallel_runs(experiment.resources, session)
        logger.info(f"{len(bounds)} run(s) to do, {parallel} at a time")
        runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=parallel)
        runs = runs_flow.with_options(task_runner=runner)  # type: ignore[arg-type]
        return runs(experiment, bounds, root)


def _parallel_runs(resources: ResourceSettings, session: Session) -> int:
    """How many runs the cluster holds at once.

    Raises:
        InputError: not one.
    """
    held = int(session.cpus // (resources.cpus_per_worker * resources.workers))
    if resources.gpus_per_worker:
        held = min(held, int(session.gpus // (resources.gpus_per_worker * resources.workers)))
    if held < 1:
        raise InputError(
            f"resources: a run needs {resources.workers} worker(s) with {resources.cpus_per_worker} CPU(s) and "
            f"{resources.gpus_per_worker} GPU(s) each, and the cluster has {session.cpus} CPU(s) and {session.gpus} "
            "GPU(s): lower resources.workers, cpus_per_worker or gpus_per_worker"
        )
    return min(held, resources.max_parallel_runs or held)


def _is_done(bound: BoundRun, root: Storage) -> bool:
    return all(finished_stage(bound, stage, root) for stage in bound.run.stages) and (
        finished_evaluation(bound, root) is not None
    )


def _run_table(bounds: list[BoundRun], root: Storage) -> list[dict[str, Any]]:
    rows = []
    for bound in bounds:
        steps = [finished_stage(bound, stage, root) for stage in bound.run.stages] + [finished_evaluation(bound, root)]
        row: dict[str, Any] = {"run": bound.run.key, "run_id": bound.run_id}
        row |= {f"{receipt.step} seconds": receipt.wall_seconds for receipt in steps if receipt}
        rows.append(row | {"finished": steps[-1].finished if steps[-1] else None})
    return rows


class _Throttled:
    """Passes messages to the task run's log, at most one in LOG_SECONDS and the last of each epoch."""

    def __init__(self) -> None:
        self.logger = get_run_logger()
        self.last = 0.0

    def __call__(self, message: str, is_due: bool = False) -> None:
        if is_due or time.monotonic() - self.last > LOG_SECONDS:
            self.last = time.monotonic()
            self.logger.info(message)

    def progress(self, progress: Progress) -> None:
        self(str(progress), is_due=progress.step == progress.steps)


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
        with _prefect_api():
            full_experiment(experiment, storage_url=storage, storage_endpoint=endpoint, **fields)
    except InputError as error:
        Console(stderr=True).print(f"btinet: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(2)


def _exit_with_children() -> NoReturn:
    """End this process at once, with those that it started: an embedded Ray, a Prefect server.

    A thread that waits for a Ray job cannot be interrupted. The cluster's jobs end when this process has gone.
    """
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    for child in psutil.wait_procs(children, timeout=5)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(130)


@contextmanager
def _prefect_api() -> Iterator[None]:
    """The Prefect server that PREFECT_API_URL names, or one for the duration of the block; and Ctrl-C.

    The server that Prefect itself would start shares this process's group: Ctrl-C would end it before the flow, which
    would then wait minutes for an answer. Ours is in a group of its own, hears that the flow is cancelled, and ends.
    """
    server = None if PREFECT_API_URL.value() else _start_server()

    def stop(signum: int, frame: object) -> None:
        context = FlowRunContext.get()
        if context and context.flow_run:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(context.flow_run.id, Cancelled(), force=True)
        Console(stderr=True).print("interrupted; the same command goes on from the last checkpoint", soft_wrap=True)
        _exit_with_children()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        yield
    finally:
        if server is not None:
            logging.shutdown()  # what is still to be sent to the server
            server.terminate()
            server.wait()


def _start_server() -> subprocess.Popen[bytes]:
    """Start a Prefect server on a free port of localhost and point this process at it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        env=os.environ | {"PREFECT_SERVER_UI_API_URL": url},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while server.poll() is None and not _is_healthy(url):
        time.sleep(0.2)
    os.environ["PREFECT_API_URL"] = url
    refresh_global_settings_context()
    return server


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).is_success
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    typer.run(main)

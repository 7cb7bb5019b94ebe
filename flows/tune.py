"""``btinet-tune/tune``: a search over settings: prepare -> trials with Ray Tune -> the best as an experiment file.

``btinet tune SEARCH`` does the same without Prefect. What is trained already is found in storage, whoever did it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from rich.console import Console

from btinet.binding import check_inputs, open_storage
from btinet.cluster.session import ray_session
from btinet.cluster.tune import train_with_tune
from btinet.config import Experiment, load_experiment
from btinet.errors import InputError
from btinet.search import (
    Outcome,
    Search,
    best_experiment,
    best_of,
    bind_trials,
    load_search,
    make_trials,
    publish_search,
    read_scores,
    run_names,
    terminal_table,
    trial_rows,
)
from btinet.storage import Storage
from flows.full_experiment import _prefect_api, prepare_task


@task(name="trials", task_run_name="trials of {search.name}", cache_policy=NO_CACHE)
def trials_task(search: Search, base: Experiment, found: list[Outcome], root: Storage) -> dict[str, str]:
    """Train the runs that are not finished; returns run_id -> why it failed."""
    logger = get_run_logger()
    names = run_names(found)
    pending = [bound for outcome in found for bound in outcome.unfinished]
    logger.info(f"{len(found)} trial(s), {len(names)} run(s), {len(names) - len(pending)} of them done already")
    if not pending:
        return {}
    with ray_session() as session:
        if session.dashboard_url:
            logger.info(f"Ray dashboard: {session.dashboard_url} (it asks for a token: `ray get-auth-token`)")
            create_link_artifact(session.dashboard_url, link_text="Ray dashboard", key="ray-dashboard")
        return train_with_tune(
            search.name,
            pending,
            root,
            base.resources,
            lambda bound, message: logger.info(f"{names[bound.run_id]}  {message}"),
        )


@flow(name="btinet-tune", flow_run_name="{search}", validate_parameters=True)
def tune(
    search: str = "experiments/tune-quick.yaml",
    storage_url: str | None = None,
    storage_endpoint: str | None = None,
    data_root: str | None = None,
    weights: str | None = None,
) -> dict[str, str]:
    """Search over an experiment's settings and write the best as an experiment file.

    Args:
        search: Search file (YAML), relative to the project's folder.
        storage_url: Where results live: file://... or s3://bucket/prefix; by default as the experiment says.
        storage_endpoint: URL of an S3-compatible server, for s3:// storage.
        data_root: Folder that holds the datasets in their official layouts.
        weights: safetensors file of the encoder's ImageNet weights.
    """
    logger = get_run_logger()
    settings, base = _load(search, data_root, weights)
    base = base.with_storage(storage_url, storage_endpoint)
    trials = make_trials(settings, base)
    root = open_storage(base)
    prepare_task(base, base.datasets[0], root)
    found = bind_trials(trials, root)
    failures = trials_task(settings, base, found, root)

    found = read_scores(found, root)
    folder = publish_search(settings, found, failures, root)
    Console().print(terminal_table(settings, found))
    create_table_artifact(trial_rows(settings, found), key="trials", description=f"Search {settings.name}")
    best = best_of(settings, found)
    if failures:
        names = run_names(found)
        logger.warning("failed: " + "\n".join(f"{names[run_id]}: {why}" for run_id, why in failures.items()))
    if best is None:
        raise RuntimeError("no trial finished; run again to go on with them")
    file = folder / "best.yaml"
    content = best_experiment(settings, best, len(found))
    create_markdown_artifact(f"`{file}`\n\n```yaml\n{content}```", key="best", description=f"Best of {settings.name}")
    logger.info(f"Trials: {folder / 'trials.parquet'}")
    logger.info(f"Best:   {file} ({best.trial})")
    return {"trials": (folder / "trials.parquet").url, "best": file.url}


def _load(search: str, data_root: str | None, weights: str | None) -> tuple[Search, Experiment]:
    """The search and the experiment that it varies, checked."""
    settings = load_search(Path(search))
    base = load_experiment(Path(search).parent / settings.experiment, data_root=data_root, weights=weights)
    check_inputs(base)
    return settings, base


def main(
    search: str = typer.Argument("experiments/tune-quick.yaml", help="Search file (YAML)."),
    storage: str | None = typer.Option(None, envvar="BTINET_STORAGE", help="A folder, file://... or s3://..."),
    endpoint: str | None = typer.Option(None, help="URL of an S3-compatible server, for s3:// storage."),
    data_root: str | None = typer.Option(None, help="Folder with the datasets; else BTINET_DATA_ROOT."),
    weights: str | None = typer.Option(None, help="The encoder's ImageNet weights; else BTINET_WEIGHTS."),
) -> None:
    """Search over an experiment's settings as a Prefect flow; `btinet tune` is the same without Prefect.

    After an interruption the same command goes on: what is trained is not trained again.
    """
    fields: dict[str, Any] = {"data_root": data_root, "weights": weights}
    try:
        _load(search, **fields)  # tell at once, not when Prefect is up
        with _prefect_api():
            tune(search, storage_url=storage, storage_endpoint=endpoint, **fields)
    except InputError as error:
        Console(stderr=True).print(f"btinet: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    typer.run(main)

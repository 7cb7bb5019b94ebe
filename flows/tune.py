"""``btinet-tune/tune``: a search over settings: prepare -> trials with Ray Tune -> the best as an experiment file.

``btinet tune SEARCH`` does the same without Prefect. What is trained already is found in storage, whoever did it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from rich.console import Console

from btinet.binding import open_storage
from btinet.cluster.session import ray_session
from btinet.cluster.tune import train_with_tune
from btinet.console import fail
from btinet.errors import InputError, JobError
from btinet.options import DataRoot, Endpoint, StorageUrl, Weights
from btinet.search import (
    Outcome,
    Search,
    bind_trials,
    counts,
    open_search,
    publish_search,
    terminal_table,
    trial_rows,
    unfinished,
)
from btinet.storage import Storage
from flows.full_experiment import prepare_task
from flows.process import prefect_api


@task(name="trials", task_run_name="trials of {search.name}", cache_policy=NO_CACHE)
def trials_task(search: Search, found: list[Outcome], root: Storage) -> dict[str, str]:
    """Train the runs that are not finished; returns run_id -> why it failed."""
    logger = get_run_logger()
    with ray_session() as session:
        if session.dashboard_url:
            logger.info(f"Ray dashboard: {session.dashboard_url} (it asks for a token: `ray get-auth-token`)")
            create_link_artifact(session.dashboard_url, link_text="Ray dashboard", key="ray-dashboard")
        return train_with_tune(search.name, found, root, logger.info)


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
    settings, trials = open_search(Path(search), storage_url, storage_endpoint, data_root, weights)
    experiment = trials[0].experiment
    root = open_storage(experiment)
    prepare_task(experiment, experiment.datasets[0], root)
    found = bind_trials(trials, root)
    logger.info(counts(found))
    failures = trials_task(settings, found, root) if unfinished(found) else {}

    result = publish_search(settings, found, failures, root)
    Console().print(terminal_table(settings, result.outcomes))
    create_table_artifact(trial_rows(settings, result.outcomes), key="trials", description=f"Search {settings.name}")
    for failure in result.failures:
        logger.warning(failure)
    logger.info(f"Trials: {result.trials}")
    if result.best is None:
        raise JobError("no trial finished; run again to go on with them")
    content = result.experiment.read_bytes().decode()
    create_markdown_artifact(
        f"`{result.experiment}`\n\n```yaml\n{content}```", key="best", description=f"Best of {settings.name}"
    )
    logger.info(f"Best:   {result.experiment} ({result.best.trial})")
    return {"trials": result.trials.url, "best": result.experiment.url}


def main(
    search: Annotated[Path, typer.Argument(help="Search file (YAML).")] = Path("experiments/tune-quick.yaml"),
    storage: StorageUrl = None,
    endpoint: Endpoint = None,
    data_root: DataRoot = None,
    weights: Weights = None,
) -> None:
    """Search over an experiment's settings as a Prefect flow; `btinet tune` is the same without Prefect.

    After an interruption the same command goes on: what is trained is not trained again.
    """
    try:
        open_search(search, storage, endpoint, data_root, weights)  # tell at once, not when Prefect is up
        with prefect_api():
            tune(str(search), storage, endpoint, data_root, weights)
    except InputError as error:
        fail(error, 2)
    except JobError as error:  # Prefect has logged it with its traceback
        fail(error, 1)


if __name__ == "__main__":
    typer.run(main)

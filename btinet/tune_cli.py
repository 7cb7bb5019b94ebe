"""``btinet tune``: search over an experiment's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from btinet.binding import open_storage
from btinet.console import bar, console
from btinet.options import DataRoot, Endpoint, StorageUrl, Weights
from btinet.search import bind_trials, counts, open_search, publish_search, terminal_table, unfinished


def tune(
    search: Annotated[Path, typer.Argument(help="Search file (YAML), e.g. experiments/tune-quick.yaml.")],
    storage: StorageUrl = None,
    endpoint: Endpoint = None,
    data_root: DataRoot = None,
    weights: Weights = None,
    best: Annotated[Path | None, typer.Option(help="Also write the best experiment file here.")] = None,
) -> None:
    """Search over settings with Ray Tune, and write the best as an experiment file.

    A search file names an experiment and, for some of its settings, values to try: a list, or a range to draw from
    (docs/tuning.md). Trials are compared on the validation split.

    Trials are ordinary runs in storage: after an interruption the same command goes on where it was, and a trial that
    any search or experiment has trained before is not trained again. With RAY_ADDRESS set it trains on that cluster,
    else on this machine's cores and GPUs; each trial gets the CPUs and GPUs of one of the experiment's workers.

    Ends with a table of the trials, in searches/NAME/trials.parquet too, and searches/NAME/best.yaml.
    """
    settings, trials = open_search(search, storage, endpoint, data_root, weights)
    experiment = trials[0].experiment
    root = open_storage(experiment)
    with bar(f"preparing {experiment.datasets[0].name}") as show:
        found = bind_trials(trials, root, show)
    console.print(counts(found))
    failures = {}
    if unfinished(found):
        from btinet.cluster.session import ray_session
        from btinet.cluster.tune import train_with_tune

        with ray_session() as session:
            console.print(f"Ray dashboard: {session.dashboard_url}")
            failures = train_with_tune(settings.name, found, root, lambda message: console.print(message, markup=False))
    result = publish_search(settings, found, failures, root)
    Console().print(terminal_table(settings, result.outcomes))
    for failure in result.failures:
        console.print(failure, markup=False)
    console.print(f"trials {result.trials}")
    if result.best is None:
        console.print("no trial finished", style="bold red")
        raise typer.Exit(1)
    console.print(f"best   {result.experiment} ({result.best.trial})", markup=False)
    if best is not None:
        result.experiment.download(best)

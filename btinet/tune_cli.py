"""``btinet tune``: search over an experiment's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from btinet.binding import check_inputs, open_storage
from btinet.config import load_experiment
from btinet.console import bar, console
from btinet.search import (
    best_experiment,
    best_of,
    bind_trials,
    load_search,
    make_trials,
    publish_search,
    read_scores,
    run_names,
    terminal_table,
)
from btinet.storage import Storage


def tune(
    search: Annotated[Path, typer.Argument(help="Search file (YAML), e.g. experiments/tune-quick.yaml.")],
    storage: Annotated[
        str | None,
        typer.Option("--storage", envvar="BTINET_STORAGE", help="Where results live: a folder, file://... or s3://..."),
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="URL of an S3-compatible server, for s3:// storage.")] = None,
    data_root: Annotated[
        str | None,
        typer.Option(help="Folder that holds the datasets in their official layouts; else BTINET_DATA_ROOT."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="safetensors file of the encoder's ImageNet weights; else BTINET_WEIGHTS.")
    ] = None,
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
    settings = load_search(search)
    base = load_experiment(search.parent / settings.experiment, data_root=data_root, weights=weights)
    base = base.with_storage(storage, endpoint)
    check_inputs(base)
    trials = make_trials(settings, base)
    root = open_storage(base)
    with bar(f"preparing {base.datasets[0].name}") as show:
        found = bind_trials(trials, root, show)
    names = run_names(found)
    pending = [bound for outcome in found for bound in outcome.unfinished]
    console.print(f"{len(found)} trial(s), {len(names)} run(s), {len(names) - len(pending)} of them done already")
    failures = {}
    if pending:
        from btinet.cluster.session import ray_session
        from btinet.cluster.tune import train_with_tune

        with ray_session() as session:
            console.print(f"Ray dashboard: {session.dashboard_url}")
            failures = train_with_tune(
                settings.name,
                pending,
                root,
                base.resources,
                lambda bound, message: console.print(f"{names[bound.run_id]}  {message}"),
            )
    found = read_scores(found, root)
    folder = publish_search(settings, found, failures, root)
    Console().print(terminal_table(settings, found))
    for run_id, reason in failures.items():
        console.print(f"{names[run_id]} failed: {reason}")
    console.print(f"trials {folder / 'trials.parquet'}")
    winner = best_of(settings, found)
    if winner is None:
        console.print("no trial finished", style="bold red")
        raise typer.Exit(1)
    console.print(f"best   {folder / 'best.yaml'} ({winner.trial})")
    if best is not None:
        Storage(str(best)).write_text(best_experiment(settings, winner, len(found)))

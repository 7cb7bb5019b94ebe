"""``btinet plan`` and ``btinet status``: an experiment's runs, before and while they are done."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from btinet.config import Experiment, load_experiment
from btinet.options import Endpoint, StorageUrl
from btinet.status import RunState, run_states, seconds_left, steps
from btinet.storage import Storage

ExperimentFile = Annotated[str, typer.Argument(help="Experiment file (YAML); examples are in experiments/.")]


def plan(experiment: ExperimentFile, storage: StorageUrl = None, endpoint: Endpoint = None) -> None:
    """List an experiment's runs: what is done, what is left, and how long that will take, before anything starts.

    The time is that of runs that have finished in this storage with the same dataset, method and preset, for the whole
    budget of epochs. It starts nothing, and needs no data: a dataset whose files have changed since makes new runs.
    """
    settings, states, left = _look(experiment, storage, endpoint)
    table = _table(f"experiment {settings.name}", "run", "done", "left", "time left, at most")
    for state, seconds in zip(states, left, strict=True):
        left_steps = [step for step in steps(state.run) if step not in state.receipts]
        table.add_row(state.run.key, " ".join(state.receipts) or "-", " ".join(left_steps) or "-", _duration(seconds))
    console = _console()
    console.print(table)
    todo = [seconds for state, seconds in zip(states, left, strict=True) if state.step is not None]
    console.print(f"{len(states)} run(s): {len(states) - len(todo)} done, {len(todo)} to do or to go on with")
    known = [seconds for seconds in todo if seconds is not None]
    if known:
        console.print(f"at most {_duration(sum(known))} of run time left, one run after the other{_at_once(settings)}")
    if len(known) < len(todo):
        console.print(f"{len(todo) - len(known)} of unknown duration: nothing like them has finished in this storage")
    _print_resources(console, settings)


def status(experiment: ExperimentFile, storage: StorageUrl = None, endpoint: Endpoint = None) -> None:
    """Show where every run is: stage, epoch, speed, time left and last error. It reads the storage and nothing else."""
    settings, states, left = _look(experiment, storage, endpoint)
    table = _table(
        f"experiment {settings.name}", "run", "state", "step", "epoch", "speed", "left, at most", "last sign"
    )
    for state, seconds in zip(states, left, strict=True):
        progress = state.current
        speed = "-"
        if progress is not None and progress.last is not None and state.word == "running":
            speed = f"{float(progress.last['seconds']):.1f} s/epoch"
        table.add_row(
            state.run.key,
            state.word,
            state.step or "-",
            f"{progress.epoch}/{progress.epochs}" if progress is not None else "-",
            speed,
            _duration(seconds),
            _age(state),
        )
    console = _console()
    console.print(table)
    counts = {word: sum(state.word == word for state in states) for word in sorted({state.word for state in states})}
    console.print(f"{len(states)} run(s): " + ", ".join(f"{count} {word}" for word, count in counts.items()))
    for state in states:
        if state.failure is not None and state.step is not None:
            when = datetime.fromtimestamp(state.failure.time, UTC).isoformat(sep=" ", timespec="seconds")
            console.print(f"last error of {state.run.key} ({when}), {state.failure}", markup=False)


def _look(
    file: str, storage: str | None, endpoint: str | None
) -> tuple[Experiment, list[RunState], list[float | None]]:
    settings = load_experiment(file).with_storage(storage, endpoint)
    root = Storage(**settings.storage.model_dump())
    states = run_states(settings, root)
    return settings, states, seconds_left(states, root)


def _at_once(settings: Experiment) -> str:
    parallel = settings.resources.max_parallel_runs
    return f"; {parallel} are done at once" if parallel else "; as many are done at once as the cluster has room for"


def _print_resources(console: Console, settings: Experiment) -> None:
    resources = settings.resources
    console.print(
        f"each run gets {resources.workers} worker(s) with {resources.cpus_per_worker:g} CPU(s) and "
        f"{resources.gpus_per_worker:g} GPU(s)"
    )


def _console() -> Console:
    """Standard output; not a narrow one's width where it is a file or a pipe."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=200)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=column == "run")
    return table


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds == 0:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d}"


def _age(state: RunState) -> str:
    return f"{_duration(max(1.0, time.time() - state.last_sign))} ago" if state.last_sign else "-"

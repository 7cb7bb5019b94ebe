"""``btinet runs ...``: the runs that a storage holds."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from btinet.catalog import StoredRun, find_run, list_runs
from btinet.console import console
from btinet.errors import InputError
from btinet.options import Endpoint, RunStorage
from btinet.status import SILENT_SECONDS, read_state
from btinet.storage import Storage

app = typer.Typer(
    no_args_is_help=True,
    help="The runs that a storage holds: what there is (list), one of them (show), two side by side (compare); and "
    "removing one (rm).\n\n"
    "They answer from what the runs left in storage; no experiment file is needed. A RUN is its id, its key "
    "(phantom/btinet/full/42) where only one run has it, or its folder.",
)

RunName = Annotated[str, typer.Argument(metavar="RUN", help="Id, key or folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command("list")
def list_(storage: RunStorage = "results", endpoint: Endpoint = None, as_json: AsJson = False) -> None:
    """List every run: how far it is, and its test IoU (over lesions) and accuracy if it is evaluated."""
    root = Storage(storage, endpoint)
    runs = list_runs(root)
    if as_json:
        typer.echo(json.dumps([_summary(run) for run in runs], indent=2))
        return
    if not runs:
        console.print(f"{root}: no run there; --storage names another place", markup=False)
        return
    table = Table(title=root.url, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")  # in a narrow terminal the id goes on below, and nothing is cut
    for column in ("status", "finished (UTC)"):
        table.add_column(column, no_wrap=True)
    for column in ("IoU", "acc"):
        table.add_column(column, justify="right", no_wrap=True)
    for run in runs:
        summary = _summary(run)
        metrics = summary["metrics"]
        finished = (summary["finished"] or "–")[:16].replace("T", " ")
        shown = [_number(metrics.get(name)) for name in ("test_iou", "test_accuracy")]
        table.add_row(run.bound.run_id, run.status, finished, *shown)
    Console().print(table)


@app.command()
def show(run: RunName, storage: RunStorage = "results", endpoint: Endpoint = None, as_json: AsJson = False) -> None:
    """Show one run: what it is, its steps with their metrics and times, its settings, and where its files are."""
    found = find_run(run, Storage(storage, endpoint))
    summary = _summary(found) | {"files": [file.url for file in found.files], "settings": _settings(found)}
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    table = Table(title=found.bound.run_id, box=box.SIMPLE_HEAD, show_header=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")  # hashes and URLs go on below; nothing is cut
    table.add_row("status", found.status)
    bound = found.bound
    for name, value in {
        "prepared": bound.prepared,
        "split": bound.split,
        "initial weights": bound.weights_sha256 or "random",
    }.items():
        table.add_row(name, value)
    steps = {f"stage {stage}": receipt for stage, receipt in found.stages.items()}
    for name, receipt in (steps | ({"evaluation": found.evaluation} if found.evaluation else {})).items():
        table.add_row(name, str(receipt))
        device = receipt.environment.get("device", "unknown device")
        table.add_row("", f"{receipt.finished} on {device}, commit {receipt.environment.get('git', 'unknown')}")
    for name, value in _settings(found).items():
        table.add_row(name, str(value))
    for file in found.files:
        table.add_row("file", file.url)
    Console().print(table)


@app.command()
def compare(
    first: RunName,
    second: RunName,
    storage: RunStorage = "results",
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Show what two runs differ in: settings, data, metrics, environment."""
    root = Storage(storage, endpoint)
    runs = [find_run(name, root) for name in (first, second)]
    described = [_described(run) for run in runs]
    names = dict.fromkeys([*described[0], *described[1]])
    different = {
        name: [about.get(name) for about in described]
        for name in names
        if described[0].get(name) != described[1].get(name)
    }
    if as_json:
        typer.echo(json.dumps({"runs": [run.bound.run_id for run in runs], "different": different}, indent=2))
        return
    table = Table(title="what differs", box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for run in runs:
        table.add_column(run.bound.run_id, overflow="fold")
    for name, values in different.items():
        table.add_row(name, *map(_number, values))
    Console().print(table)
    same = "nothing: they are the same run" if not different else f"{len(names) - len(different)} more are the same"
    console.print(same)


@app.command()
def rm(
    run: RunName,
    storage: RunStorage = "results",
    endpoint: Endpoint = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove one run: its folder and its own result files, after asking.

    Prepared datasets, other runs and analyses that already used it stay. A run that is running is not removed.
    """
    found = find_run(run, Storage(storage, endpoint))
    if read_state(found.bound, found.root).word == "running":
        raise InputError(
            f"{found.bound.run_id} is running: end what trains it; {SILENT_SECONDS:.0f} s after its last progress it "
            "can be removed"
        )
    console.print(f"{found.bound.run_id} ({found.status}):", markup=False)
    folder, *results = found.files
    for file in found.files:
        console.print(f"  {file}", markup=False)
    if not yes and not typer.confirm("Remove these?", err=True):
        raise typer.Exit(1)
    others = [file for file in folder.children() if file.name != "run.json"]
    for file in (*results, *others, folder):  # run.json last: while it is there, the run can be named again
        file.remove()
    console.print(f"removed {found.bound.run_id}", markup=False)


def _summary(run: StoredRun) -> dict[str, Any]:
    last = run.evaluation or (run.stages[max(run.stages)] if run.stages else None)
    return {
        "run_id": run.bound.run_id,
        "key": run.bound.run.key,
        "preset": run.bound.run.preset,
        "status": run.status,
        "finished": last.finished if last else None,
        "metrics": run.evaluation.metrics if run.evaluation else {},
    }


def _settings(run: StoredRun) -> dict[str, Any]:
    """The run's settings, flat, by their names in an experiment file."""
    return _flat(run.bound.run.settings.model_dump(mode="json"))


def _described(run: StoredRun) -> dict[str, Any]:
    """Everything that two runs can differ in."""
    bound = run.bound
    about: dict[str, Any] = {
        "dataset": bound.run.dataset.name,
        "method": bound.run.method,
        "variant": bound.run.variant,
        "preset": bound.run.preset,
        "seed": bound.run.seed,
        "prepared": bound.prepared,
        "split": bound.split,
        "initial weights": bound.weights_sha256,
        "numerics": bound.numerics,
        **_settings(run),
        "status": run.status,
    }
    for stage, receipt in run.stages.items():
        about |= {f"stage {stage} {name}": value for name, value in receipt.metrics.items()}
        about[f"stage {stage} device"] = receipt.environment.get("device")
    if run.evaluation is not None:
        about |= run.evaluation.metrics
    return about


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

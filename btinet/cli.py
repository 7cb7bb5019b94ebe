"""``btinet ...``: one thin command a step. What dvc.yaml calls, and what a person calls to redo one step.

What loads torch or Matplotlib is imported by the commands that need it, here and in the groups: the others, and
``--help``, answer at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
import typer
from pyarrow.csv import write_csv
from rich.console import Console

from btinet import data_cli, experiment_cli, models_cli, predict_cli, runs_cli, serve_cli, tune_cli
from btinet.binding import bind_all, bind_one, check_inputs, open_storage, prepare_dataset
from btinet.config import BoundRun, Experiment, load_experiment
from btinet.console import bar, console, fail
from btinet.datasets.prepare import export_store
from btinet.errors import InputError, JobError, NonFiniteLossError
from btinet.evaluation.outputs import finished_evaluation
from btinet.options import DataRoot, Device, Endpoint, StorageUrl, Weights
from btinet.partitions import read_partition
from btinet.progress import Progress, watching
from btinet.receipts import Receipt
from btinet.status import EVALUATION, progress_file
from btinet.storage import NO_ROOM, Storage, is_full, refused
from btinet.training.outputs import epochs_file, finished_stage

if TYPE_CHECKING:
    from btinet.results import Results

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="BTI-Net experiments, step by step: prepare -> train (stage 1, stage 2) -> evaluate -> analyse.\n\n"
    "A RUN is named DATASET/METHOD/VARIANT/SEED, e.g. phantom/btinet/full/42; `btinet plan EXPERIMENT` lists them. "
    "A step that is done is not done again. The whole chain at once: `python -m flows.full_experiment EXPERIMENT`. "
    "Then: `btinet runs list`, export a run as a package, predict with it.",
)
app.add_typer(data_cli.app, name="data")
app.add_typer(models_cli.app, name="models")
app.add_typer(runs_cli.app, name="runs")
app.command()(predict_cli.export)
app.command()(predict_cli.predict)
app.command()(serve_cli.serve)
app.command()(tune_cli.tune)
app.command()(experiment_cli.plan)
app.command()(experiment_cli.status)

ExperimentFile = Annotated[
    Path, typer.Option("--experiment", "-e", help="Experiment file (YAML); examples are in experiments/.")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="DATASET/METHOD/VARIANT/SEED")]
Store = Annotated[
    Path | None,
    typer.Option("--store", help="Take the prepared dataset from this folder (`btinet prepare --export`, `dvc pull`)."),
]
InProcess = Annotated[
    bool,
    typer.Option("--in-process/--cluster", help="In this plain process, without Ray; or as a Ray job (the default)."),
]
DEFAULT_EXPERIMENT = Path("params.yaml")


@app.command()
def prepare(
    dataset: Annotated[
        str | None, typer.Argument(help="Only this dataset; all of the experiment's by default.")
    ] = None,
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    storage: StorageUrl = None,
    endpoint: Endpoint = None,
    data_root: DataRoot = None,
    export: Annotated[
        Path | None, typer.Option(help="Also copy the prepared dataset into this folder, for DVC to version.")
    ] = None,
) -> None:
    """Decode datasets once into large files addressed by their content, and draw their splits."""
    settings = load_experiment(experiment, data_root=data_root).with_storage(storage, endpoint)
    root = open_storage(settings)
    chosen = [entry for entry in settings.datasets if dataset in (None, entry.name)]
    if not chosen:
        raise InputError(f"experiment {settings.name!r} has no dataset {dataset!r}")
    if export is not None and len(chosen) > 1:
        raise InputError(f"--export takes one dataset: name one of {', '.join(entry.name for entry in chosen)}")
    for entry in chosen:
        with bar(f"preparing {entry.name}") as show:
            result = prepare_dataset(settings, entry, root, show)
        manifest = result.manifest
        counts = ", ".join(f"{name} {manifest.class_counts[name]}" for name in manifest.classes)
        console.print(
            f"{entry.name}: {'prepared before' if result.reused else 'prepared'}: {manifest.count} samples ({counts}) "
            f"at {manifest.image_size} px, hash {manifest.hash}"
        )
        if export is not None:
            export_store(manifest, root, export)


@app.command()
def train(
    run: RunName,
    stage: Annotated[int, typer.Option(min=1, max=2, help="1 trains everything, 2 the four gates only.")],
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    storage: StorageUrl = None,
    endpoint: Endpoint = None,
    data_root: DataRoot = None,
    weights: Weights = None,
    store: Store = None,
    in_process: InProcess = False,
    device: Device = None,
    receipt: Annotated[Path | None, typer.Option(help="Also write the receipt to this file, for DVC to track.")] = None,
    history: Annotated[Path | None, typer.Option(help="Also write the history, a row an epoch, as CSV.")] = None,
) -> None:
    """Train one stage of a run; goes on from the last checkpoint if it was interrupted."""
    settings, root = _open(experiment, storage, endpoint, data_root, weights)
    bound = bind_one(settings, run, root, store)
    if stage not in bound.run.stages:  # dvc.yaml has both stages for every run
        console.print(f"{run} trains no gates on L_gate, hence has no stage {stage}: nothing to do")
        if receipt is not None:
            Storage(str(receipt)).write_json({"run_id": bound.run_id, "step": f"stage{stage}", "skipped": "no gates"})
        if history is not None:
            _write_csv(read_partition(epochs_file(root, bound, 1)).slice(length=0), history)
        return
    show = _progress_printer(run)
    done = finished_stage(bound, stage, root)
    if done is not None:
        console.print(f"{run} stage {stage}: done already ({done.finished})")
    elif in_process:
        from btinet.models.place import device_named
        from btinet.training.stage import train_stage

        done = train_stage(bound, stage, root, device_named(device), show)
    else:
        step = f"stage{stage}"
        _run_on_cluster(settings, bound, step, root, lambda content: show(Progress(**content["progress"])))
        done = finished_stage(bound, stage, root)
    assert done is not None
    _report(done, bound, receipt)
    if history is not None:
        _write_csv(read_partition(epochs_file(root, bound, stage)), history)


@app.command()
def evaluate(
    run: RunName,
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    storage: StorageUrl = None,
    endpoint: Endpoint = None,
    data_root: DataRoot = None,
    weights: Weights = None,
    store: Store = None,
    in_process: InProcess = False,
    device: Device = None,
    receipt: Annotated[Path | None, typer.Option(help="Also write the receipt to this file, for DVC to track.")] = None,
    metrics: Annotated[Path | None, typer.Option(help="Also write the headline metrics as JSON.")] = None,
) -> None:
    """Predict validation and test with the trained stages, with Monte Carlo dropout beside the gate signals."""
    settings, root = _open(experiment, storage, endpoint, data_root, weights)
    bound = bind_one(settings, run, root, store)
    done = finished_evaluation(bound, root)
    if done is not None:
        console.print(f"{run} evaluation: done already ({done.finished})")
    elif in_process:
        from btinet.evaluation.evaluate import evaluate as evaluate_run
        from btinet.models.place import device_named

        with bar(f"evaluating {run}") as show:
            done = evaluate_run(bound, root, device_named(device), show)
    else:
        with bar(f"evaluating {run}") as show:
            _run_on_cluster(settings, bound, EVALUATION, root, lambda content: show(content["done"], content["total"]))
        done = finished_evaluation(bound, root)
    assert done is not None
    _report(done, bound, receipt)
    if metrics is not None:
        Storage(str(metrics)).write_json(done.metrics)


@app.command()
def analyse(
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    storage: StorageUrl = None,
    endpoint: Endpoint = None,
    data_root: DataRoot = None,
    weights: Weights = None,
    stores: Annotated[
        Path | None,
        typer.Option(help="Folder with a prepared dataset per dataset name (see --store of train)."),
    ] = None,
    export: Annotated[Path | None, typer.Option(help="Also write the tables as CSV and the report here.")] = None,
) -> None:
    """Tables and report over all runs of the experiment."""
    from btinet.results import publish_results

    settings, root = _open(experiment, storage, endpoint, data_root, weights)
    results = publish_results(settings, bind_all(settings, root, stores), root)
    _show(settings.name, results)
    if export is not None:
        for name, table in results.tables.items():
            _write_csv(table, export / f"{name}.csv")
        for path, file in results.files.items():
            file.download(export / ("report.html" if path == "index.html" else path))


@app.command()
def report(
    results: Annotated[str, typer.Option(help="Folder or s3:// URL that holds results/ (predictions, runs, ...).")],
    endpoint: Endpoint = None,
    output: Annotated[str, typer.Option(help="Folder or s3:// URL for the page (index.html) and tables/.")] = "report",
    name: Annotated[str, typer.Option(help="What the report is called.")] = "report",
    run: Annotated[
        list[str] | None,
        typer.Option(help="Only runs whose run_id fits, e.g. 'busi-*'; repeat it for several. All by default."),
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Also write curves and figures as TensorBoard event files into this folder.")
    ] = None,
) -> None:
    """Tables and report from results alone: on any machine, without datasets, weights or experiment file.

    RESULTS is the storage of an experiment, or a copy of its results/ folder: `aws s3 cp --recursive
    s3://bucket/prefix/results here/results`, then `btinet report --results here`.
    """
    from btinet.results import find_runs, publish

    root, target = Storage(results, endpoint), Storage(output, endpoint)
    target.check_writable()
    made = publish(root, find_runs(root, run or []), name, target / "tables", target)
    _show(name, made)
    if tensorboard is not None:
        from btinet.report.tensorboard import write_tensorboard

        write_tensorboard(tensorboard, made.epochs, made.drawings)
        console.print(f"TensorBoard: tensorboard --logdir {tensorboard}")


def main() -> None:
    """Run the command line.

    Bad input, a path that cannot be used and storage that is not reached end with status 2 and one message, a failed
    job or a full disk with 1, Ctrl-C with 130.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        app()
    except (InputError, NonFiniteLossError, ConnectionError) as error:
        fail(error, 2)
    except PermissionError as error:
        fail(refused(error), 2)
    except JobError as error:
        fail(error, 1)
    except OSError as error:
        if is_full(error):
            fail(f"{error}; {NO_ROOM} and run again: it goes on from the last checkpoint", 1)
        if error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror}: name another path, or mend this one", 2)


def _open(
    file: Path, storage: str | None, endpoint: str | None, data_root: str | None, weights: str | None = None
) -> tuple[Experiment, Storage]:
    """The experiment with the command line's options in place of the file's, and its storage."""
    experiment = load_experiment(file, data_root=data_root, weights=weights).with_storage(storage, endpoint)
    check_inputs(experiment)
    return experiment, open_storage(experiment)


def _run_on_cluster(
    experiment: Experiment, bound: BoundRun, step: str, root: Storage, on_progress: Callable[[dict[str, Any]], None]
) -> None:
    """Do one step on the cluster; ``on_progress`` is called with what it writes about its progress."""
    from btinet.cluster.jobs import steps_on_cluster
    from btinet.cluster.session import ray_session

    with ray_session() as session, watching(progress_file(root, bound.run_id, step), on_progress):
        console.print(f"Ray dashboard: {session.dashboard_url}")
        steps_on_cluster(bound, [step], root, experiment.resources)


def _show(name: str, results: Results) -> None:
    from btinet.results import headline_rows, headline_table, method_tables

    Console().print(headline_table(name, headline_rows(results.tables)), *method_tables(results.tables))
    console.print(f"tables {results.analysis}\nreport {results.report}")


def _report(receipt: Receipt, bound: BoundRun, file: Path | None) -> None:
    console.print(f"{bound.run_id}: {receipt}")
    if file is not None:
        Storage(str(file)).write_json(receipt.model_dump())


def _write_csv(table: pa.Table, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_csv(table, file)


def _progress_printer(run: str) -> Callable[[Progress], None]:
    """Shows where a training is: one line in a terminal, one line an epoch elsewhere."""
    is_terminal = console.is_terminal

    def show(progress: Progress) -> None:
        if is_terminal:
            console.print(f"{run}  {progress}", end="\r" if progress.step < progress.steps else "\n")
        elif progress.step == progress.steps:
            console.print(f"{run}  {progress}")

    return show

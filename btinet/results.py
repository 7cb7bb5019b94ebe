"""From finished runs to what people read: analysis tables, run table and report, in storage."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pyarrow as pa
import yaml
from rich import box
from rich.table import Table

from btinet.analysis import analyse, load_predictions
from btinet.config import BoundRun, Experiment
from btinet.datasets.prepared import DUPLICATES_FILE, MANIFEST_FILE, SAMPLES_FILE, store_folder
from btinet.errors import InputError
from btinet.evaluation.evaluate import finished_evaluation, predictions_file
from btinet.evaluation.schema import LEVELS
from btinet.partitions import partition_file, read_partition, write_partition
from btinet.report import dataset_page, write
from btinet.storage import Storage
from btinet.training.stage import epochs_file, finished_stage


class Results(NamedTuple):
    """What :func:`publish_results` made."""

    tables: dict[str, pa.Table]
    analysis: Storage
    """Folder of the tables as Parquet."""
    predictions: Storage
    """Folder below which each run's predictions lie."""
    report: Storage
    """The HTML page."""
    datasets: list[Storage]
    """The pages about the prepared datasets, beside the report, which links them."""


def publish_results(experiment: Experiment, bounds: list[BoundRun], root: Storage) -> Results:
    """Analyse these runs and write ``analysis/<experiment>/``, ``results/runs/`` and the report.

    Raises:
        InputError: naming runs that are not evaluated.
    """
    missing = [bound.run.key for bound in bounds if finished_evaluation(bound, root) is None]
    if missing:
        raise InputError(f"not evaluated yet: {', '.join(missing)}; run `btinet evaluate RUN` for each")
    tables = analyse(load_predictions(root, [bound.run_id for bound in bounds]))
    folder = root / "analysis" / experiment.name
    for name, table in tables.items():
        (folder / f"{name}.parquet").write_table(table)
    for bound in bounds:
        write_partition(run_file(root, bound), pa.Table.from_pylist([_run_row(bound, root)]))
    histories = [read_partition(epochs_file(root, bound, stage)) for bound in bounds for stage in bound.run.stages]
    provenance = {
        "Storage": root.url,
        "Prepared datasets": ", ".join(sorted({f"{bound.run.dataset.name} {bound.prepared}" for bound in bounds})),
        "Splits": ", ".join(sorted({bound.split for bound in bounds})),
        "Runs": ", ".join(bound.run_id for bound in bounds),
    }
    pages = {
        name: _write_dataset_page(root, name, prepared, root / "report" / experiment.name)
        for name, prepared in sorted({(bound.run.dataset.name, bound.prepared) for bound in bounds})
    }
    epochs = pa.concat_tables(histories, promote_options="default")
    report = write(root, experiment.name, epochs, provenance, {name: page.name for name, page in pages.items()})
    return Results(tables, folder, root / "results" / "predictions", report, list(pages.values()))


def _write_dataset_page(root: Storage, name: str, prepared: str, folder: Storage) -> Storage:
    """Statistics of a prepared dataset and of the splits drawn from it."""
    store = store_folder(root, name, prepared)
    splits = {file.name.removesuffix(".parquet"): file.read_table() for file in (store / "splits").children()}
    page = folder / f"dataset-{name}.html"
    page.write_text(
        dataset_page.render(
            (store / MANIFEST_FILE).read_json(),
            (store / SAMPLES_FILE).read_table(),
            (store / DUPLICATES_FILE).read_table(),
            splits,
        )
    )
    return page


def run_file(root: Storage, bound: BoundRun) -> Storage:
    return partition_file(root, "runs", bound.run, bound.run_id)


def _run_row(bound: BoundRun, root: Storage) -> dict[str, Any]:
    """One row about a run: what it was, where it ran, how it ended."""
    run = bound.run
    evaluation = finished_evaluation(bound, root)
    assert evaluation is not None
    row: dict[str, Any] = {
        "run_id": bound.run_id,
        "dataset": run.dataset.name,
        "method": run.method,
        "variant": run.variant,
        "preset": run.preset,
        "seed": run.seed,
        "prepared": bound.prepared,
        "split_id": bound.split,
        "weights_sha256": bound.weights_sha256,
        "transformer_sha256": bound.transformer_sha256,
        "config": yaml.safe_dump(run.settings.model_dump(mode="json"), sort_keys=False),
        "environment": json.dumps(evaluation.environment, sort_keys=True),
        "predictions": predictions_file(root, bound).url,
        **evaluation.metrics,
    }
    for stage in run.stages:
        receipt = finished_stage(bound, stage, root)
        assert receipt is not None
        names = ("epochs", "best_epoch", "stopped", "val_iou", "val_accuracy", "trained_parameters")
        row |= {f"stage{stage}_{name}": receipt.metrics[name] for name in names}
        row |= {
            f"stage{stage}_wall_seconds": receipt.wall_seconds,
            "parameters": receipt.metrics["parameters"],
        }
        row[f"stage{stage}_device"] = receipt.environment["device"]
    return row


def headline_rows(tables: dict[str, pa.Table]) -> list[dict[str, str]]:
    """A row a setting, as text: IoU, accuracy, and AUROC for segmentation failures of MC dropout and w_seg by level.

    Mean±sample standard deviation over seeds; a dash where the number is undefined.
    """
    keys = ("dataset", "method", "variant", "preset", "stage")
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    for name, label, column in (("segmentation", "IoU %", "iou"), ("classification", "acc %", "accuracy")):
        for row in tables[name].to_pylist():
            key = tuple(row[field] for field in keys)
            setting = f"{'/'.join(map(str, key[:3]))} ({row['seeds']} seed{'s' if row['seeds'] > 1 else ''})"
            rows.setdefault(key, {"setting": setting})[label] = _mean_and_std(row, column, 1)
    for row in tables["table2"].to_pylist():
        label = "MC" if row["level"] is None else f"w_seg {row['level']}"
        rows[tuple(row[field] for field in keys)][label] = _mean_and_std(row, "auroc", 2)
    columns = ("setting", "IoU %", "acc %", "MC", *(f"w_seg {level}" for level in LEVELS))
    return [{column: row.get(column, "–") for column in columns} for row in rows.values()]


def headline_table(title: str, rows: list[dict[str, str]]) -> Table:
    """The same for a terminal."""
    table = Table(
        title=title,
        caption="test split, mean±std over seeds; MC and w_seg: AUROC for detecting IoU < 0.5",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in rows[0]:
        if column == "setting":
            table.add_column(column, overflow="fold", min_width=12)
        else:
            table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    return table


def method_tables(tables: dict[str, pa.Table]) -> list[Table]:
    """Tables 5 and 6 for a terminal, those that have rows: ours beside the paper's."""
    shown = []
    for name, title, labels in (
        ("table5", "Table 5: joint methods", {"iou": "IoU %", "accuracy": "acc %"}),
        ("table6", "Table 6: segmentation methods", {"iou": "IoU %"}),
    ):
        rows = tables[name].to_pylist()
        if not rows:
            continue
        table = Table(title=title, caption="test split, mean±std over seeds", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("dataset")
        table.add_column("method")
        for label in labels.values():
            table.add_column(label, justify="right", no_wrap=True)
            table.add_column("paper", justify="right", no_wrap=True)
        for row in rows:
            cells = [_mean_and_std(row, f"{paper}{column}", 2) for column in labels for paper in ("", "paper_")]
            table.add_row(row["dataset"], row["method"], *cells)
        shown.append(table)
    return shown


def _mean_and_std(row: dict[str, Any], column: str, digits: int) -> str:
    mean, std = row[column], row[f"{column}_std"]
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" if std is None else f"{mean:.{digits}f}±{std:.{digits}f}"

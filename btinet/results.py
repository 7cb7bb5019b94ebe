"""From finished runs to what people read: analysis tables, run table and report, in storage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple

import pyarrow as pa
from rich import box
from rich.table import Table

from btinet.analysis import analyse, load_predictions
from btinet.config import BoundRun, Experiment
from btinet.datasets.prepared import DUPLICATES_FILE, MANIFEST_FILE, SAMPLES_FILE, read_manifest, store_folder
from btinet.errors import InputError
from btinet.evaluation.outputs import finished_evaluation
from btinet.evaluation.schema import IMAGES, LEVELS
from btinet.partitions import read_partition, read_partitions
from btinet.report import ResultTables, dataset_page, write
from btinet.report.drawing import Drawing
from btinet.storage import Storage

RUN_ID = pa.schema([pa.field("run_id", pa.string())])


class Results(NamedTuple):
    """What :func:`publish` made, and of what."""

    tables: dict[str, pa.Table]
    analysis: Storage
    """Folder of the tables as Parquet."""
    predictions: Storage
    """Folder below which each run's predictions lie."""
    report: Storage
    """The HTML page."""
    files: dict[str, Storage]
    """The page and what lies beside it, by path relative to their folder: pages about datasets, scripts
    with pictures."""
    epochs: pa.Table
    """Training curves: a row per (run_id, stage, epoch)."""
    drawings: list[Drawing]
    """The page's figures."""


def publish_results(experiment: Experiment, bounds: list[BoundRun], root: Storage) -> Results:
    """Analyse these runs and write ``analysis/<experiment>/`` and ``report/<experiment>/``.

    Raises:
        InputError: naming runs that are not evaluated.
    """
    missing = [bound.run.key for bound in bounds if finished_evaluation(bound, root) is None]
    if missing:
        raise InputError(f"not evaluated yet: {', '.join(missing)}; run `btinet evaluate RUN` for each")
    name, run_ids = experiment.name, [bound.run_id for bound in bounds]
    return publish(root, run_ids, name, root / "analysis" / name, root / "report" / name)


def publish(root: Storage, run_ids: Sequence[str], name: str, analysis: Storage, report: Storage) -> Results:
    """Analyse runs of ``root/results``, whoever made them; nothing else of ``root`` is needed.

    Args:
        root: folder that holds ``results``. Where it has their prepared datasets, too, the report has pages about them.
        run_ids: in the order of the tables.
        name: what the report is called.
        analysis: folder for the tables.
        report: folder for the page.

    Raises:
        InputError: a run is not evaluated, or two cannot be analysed together (:func:`evaluated_runs`).
    """
    results = load_results(root, run_ids)
    tables = analyse(results.predictions)
    for table_name, table in tables.items():
        (analysis / f"{table_name}.parquet").write_table(table)
    runs = results.runs.to_pylist()
    provenance = {
        "Storage": root.url,
        "Prepared datasets": ", ".join(sorted({f"{run['dataset']} {run['prepared']}" for run in runs})),
        "Splits": ", ".join(sorted({run["split_id"] for run in runs})),
        "Runs": ", ".join(run_ids),
    }
    datasets = {
        f"{dataset} {prepared}": _write_dataset_page(root, dataset, prepared, report)
        for dataset, prepared in sorted({(run["dataset"], run["prepared"]) for run in runs})
        if read_manifest(store_folder(root, dataset, prepared)) is not None
    }
    page = write(report, name, tables, results, provenance, datasets)
    files = {path: report / path for path in ("index.html", *datasets.values(), *page.files)}
    predictions = root / "results" / "predictions"
    return Results(tables, analysis, predictions, files["index.html"], files, results.epochs, page.drawings)


def load_results(root: Storage, run_ids: Sequence[str]) -> ResultTables:
    """What these runs left in ``root/results``.

    Raises:
        InputError: some are not evaluated; all of these are named.
    """
    predictions = load_predictions(root, run_ids)
    folder = root / "results"
    runs = _read_all((folder / "runs").find(".parquet"), set(run_ids))
    missing = sorted(set(run_ids) - set(runs["run_id"].to_pylist()))
    if missing:
        raise InputError(f"{folder / 'runs'}: no row about {', '.join(missing)}; evaluate these runs again")
    of_runs = {f"{run_id}-stage{stage}" for run_id in run_ids for stage in (1, 2)}
    splits = {f"{run['prepared']}-{run['split_id']}" for run in runs.to_pylist()}
    return ResultTables(
        predictions,
        runs,
        _read_all((folder / "epochs").find(".parquet"), of_runs),
        _read_all((folder / "images").find(".parquet"), splits, IMAGES),
    )


def find_runs(root: Storage, patterns: Sequence[str]) -> list[str]:
    """Evaluated runs in ``root/results`` whose run_id fits a pattern (as of file names), all if there is none.

    In the order dataset, BTI-Net before other methods, the full network before its variants, seed.

    Raises:
        InputError: there are none.
    """
    folder = root / "results" / "runs"
    rows = [row for file in folder.find(".parquet") for row in read_partition(file).to_pylist()]
    chosen = [row for row in rows if not patterns or any(fnmatch(row["run_id"], pattern) for pattern in patterns)]
    if not chosen:
        what = f"no run like {' or '.join(patterns)} among {len(rows)} run(s)" if rows else "no evaluated runs"
        raise InputError(f"{folder}: {what}; give the folder that holds results/ (runs, predictions, epochs, images)")

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        method, variant = row["method"], row["variant"]
        return row["dataset"], method != "btinet", method, variant != "full", variant, row["preset"], row["seed"]

    return [row["run_id"] for row in sorted(chosen, key=place)]


def _read_all(files: Iterable[Storage], names: set[str], schema: pa.Schema = RUN_ID) -> pa.Table:
    """The tables in the files of these names, see :func:`btinet.partitions.read_partitions`."""
    return read_partitions((file for file in files if file.name.removesuffix(".parquet") in names), schema)


def _write_dataset_page(root: Storage, name: str, prepared: str, folder: Storage) -> str:
    """Statistics of a prepared dataset and of the splits drawn from it; returns the page's name."""
    store = store_folder(root, name, prepared)
    splits = {file.name.removesuffix(".parquet"): file.read_table() for file in (store / "splits").children()}
    page = f"dataset-{name}-{prepared}.html"
    (folder / page).write_text(
        dataset_page.render(
            (store / MANIFEST_FILE).read_json(),
            (store / SAMPLES_FILE).read_table(),
            (store / DUPLICATES_FILE).read_table(),
            splits,
        )
    )
    return page


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

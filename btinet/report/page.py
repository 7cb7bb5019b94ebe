"""The page: which tables and figures it has, and in what order."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from btinet.errors import InputError
from btinet.report import figures, tables
from btinet.report.templates import render_template
from btinet.storage import Storage


def render(
    experiment: str,
    analysis: dict[str, pa.Table],
    epochs: pa.Table | None,
    provenance: dict[str, str],
    datasets: dict[str, str],
) -> str:
    """The report as one HTML document without outside resources; the same input gives the same bytes.

    Args:
        experiment: its name.
        analysis: tables as :func:`btinet.analysis.analyse` names them.
        epochs: a row per (run_id, stage, epoch); every other numeric column becomes a training curve.
        provenance: what else to say about where the numbers come from, e.g. the prepared datasets' hashes.
        datasets: name of a dataset -> address of its page, relative to this one.
    """
    runs = analysis["segmentation_runs"]
    printed = tables.printed_values(analysis["comparison"])
    return render_template(
        "page.html.j2",
        experiment=experiment,
        facts=_facts(runs),
        summary=tables.summary(analysis["segmentation"], analysis["classification"], printed),
        segmentation=tables.segmentation(analysis["segmentation"], printed),
        classification=tables.classification(analysis["classification"], printed),
        table2=tables.table2(analysis["table2"], printed),
        wseg_figure=figures.wseg_auroc(analysis["table2"], analysis["comparison"]),
        table3=tables.table3(analysis["table3"], printed),
        table5=tables.table5(analysis["table5"]),
        table6=tables.table6(analysis["table6"]),
        signals=tables.signals(analysis["detection"]),
        comparison=tables.comparison(analysis["comparison"]),
        curves=figures.training_curves(epochs, runs) if epochs is not None else [],
        runs=tables.runs(runs, analysis["classification_runs"]),
        provenance=provenance,
        datasets=datasets,
    )


def write(
    storage_root: Storage,
    experiment: str,
    epochs: pa.Table | None,
    provenance: dict[str, str],
    datasets: dict[str, str],
) -> Storage:
    """Render ``analysis/<experiment>/*.parquet`` to ``report/<experiment>/index.html``, which is returned.

    Raises:
        InputError: the experiment has not been analysed.
    """
    folder = storage_root / "analysis" / experiment
    files = folder.find(".parquet")
    if not files:
        raise InputError(f"{folder}: no analysis of experiment {experiment!r}; analyse it first")
    analysis = {file.name.removesuffix(".parquet"): file.read_table() for file in files}
    page = storage_root / "report" / experiment / "index.html"
    page.write_text(render(experiment, analysis, epochs, provenance, datasets))
    return page


def _facts(runs: pa.Table) -> list[tuple[str, Any]]:
    """What the page's head says: (label, value)."""
    names = {
        "Datasets": "dataset",
        "Methods": "method",
        "Variants": "variant",
        "Presets": "preset",
        "Seeds": "seed",
    }
    listed = [(label, ", ".join(map(str, pc.unique(runs[column]).to_pylist()))) for label, column in names.items()]
    return [("Runs", len(runs)), *listed]

"""The report's page: which tables and figures it has, and in what order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from btinet.analysis.runs import evaluated_runs
from btinet.analysis.schemas import CONTRACTS
from btinet.report import tables
from btinet.report.detection_figures import detection_figures
from btinet.report.downloads import Link, data_links, downloadable
from btinet.report.drawing import Drawing
from btinet.report.explorer import PICTURES_FILE, PICTURES_FOLDER, explorer
from btinet.report.figures import training_curves
from btinet.report.gate_figures import gate_figures
from btinet.report.picture_figures import PictureFigure, picture_figures
from btinet.report.tables import HtmlTable
from btinet.report.templates import render_template
from btinet.storage import Storage

MAX_DOWNLOAD_BYTES = 2**20
"""A larger table (in memory) does not go into the page, only into the folder of the analysis."""

Tables = dict[str, pa.Table]


class ResultTables(NamedTuple):
    """What evaluated runs left in ``results/``."""

    predictions: pa.Table
    runs: pa.Table
    epochs: pa.Table
    """A row per (run_id, stage, epoch); every other numeric column becomes a training curve. May be empty."""
    images: pa.Table
    """May be empty: then samples are shown without pictures."""


class Page(NamedTuple):
    html: str
    files: dict[str, str]
    """Scripts with pictures, by path relative to the page; none while the pictures fit into it."""
    drawings: list[Drawing]
    """The figures that Matplotlib drew."""


@dataclass(frozen=True)
class Part:
    content: HtmlTable | Drawing | PictureFigure
    folded: str = ""
    """What to press to see it; empty where it is seen at once."""

    @property
    def is_table(self) -> bool:
        return isinstance(self.content, HtmlTable)


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    parts: list[Part] = field(default_factory=list)
    absent: str = ""
    """What the section says when it has no parts; without it such a section is left out."""


class MoreTable(NamedTuple):
    """A table that the page only offers for download."""

    name: str
    rows: int
    row: str
    """What a row is."""
    links: list[Link]


def render(
    name: str, analysis: Tables, results: ResultTables, provenance: dict[str, str], datasets: dict[str, str]
) -> Page:
    """The report without outside resources; the same input gives the same bytes.

    Args:
        name: of the experiment.
        analysis: tables as :func:`btinet.analysis.analyse` names them.
        results: what they were made from.
        provenance: what else to say about where the numbers come from.
        datasets: a prepared dataset's name and hash -> address of its page, relative to this one.
    """
    runs = evaluated_runs(results.predictions)
    printed = tables.printed_values(analysis["comparison"])
    found, gates = detection_figures(analysis), gate_figures(analysis)
    curves = training_curves(results.epochs, analysis["segmentation_runs"]) if len(results.epochs) else []
    pictures = picture_figures(runs, results.runs, results.images)

    def table(made: HtmlTable, folded: str = "") -> list[Part]:
        return [Part(downloadable(made, analysis), folded)] if made.rows else []

    sections = [
        Section(
            "quality",
            "Segmentation and classification",
            [
                *table(tables.segmentation(analysis["segmentation"], printed)),
                *table(tables.classification(analysis["classification"], printed)),
                *table(tables.table5(analysis["table5"])),
                *table(tables.table6(analysis["table6"])),
                *table(tables.table4(analysis["table4"])),
                *table(tables.methods_tests(analysis["methods_tests"]), "Against the full BTI-Net, tested"),
            ],
        ),
        Section("pictures", "Pictures", [Part(picture) for picture in pictures]),
        Section(
            "failures",
            "Finding failures",
            [
                *table(tables.table2(analysis["table2"], printed)),
                *table(tables.table3(analysis["table3"], printed)),
                *_parts(found),
                *table(
                    tables.choices(
                        analysis["table_a2"],
                        "table_a2",
                        "Table A2. Detecting failed segmentations: Monte Carlo dropout, −delta combined over levels, "
                        "and the best signal. Oracle: selected or weighted on the test set itself, as the paper does. "
                        "Over the lesion (not in the paper): the variance averaged over the predicted lesion, an "
                        "empty one being the most uncertain; over the image it grows with the lesion's size.",
                    ),
                    "Table A2: combined and best signals for failed segmentations",
                ),
                *table(
                    tables.by_level(
                        analysis["table_a3"],
                        "table_a3",
                        "Tables A3, A7, A12. AUROC of every signal for failed segmentations. Bold: best at its level.",
                    ),
                    "Tables A3, A7, A12: every signal and level, failed segmentations",
                ),
                *table(
                    tables.by_level(
                        analysis["table_a4"],
                        "table_a4",
                        "Tables A4, A8, A13. AUROC of every signal for wrong classes. Bold: best at its level.",
                    ),
                    "Tables A4, A8, A13: every signal and level, wrong classes",
                ),
                *table(
                    tables.choices(
                        analysis["table_a5"],
                        "table_a5",
                        "Tables A5, A9, A14. Ways to combine −delta over levels, for failed segmentations.",
                    ),
                    "Tables A5, A9, A14: ways to combine levels",
                ),
                *table(tables.detection(analysis["detection"]), "Every score and metric, beyond the paper"),
                *table(
                    tables.signal_tests(analysis["signal_tests"]), "Every score against Monte Carlo dropout, tested"
                ),
            ],
        ),
        Section(
            "gates",
            "What the gates do",
            [
                *_parts(gates),
                *table(tables.correlations(analysis["correlations"])),
                *table(
                    tables.wrong_and_correct(analysis["gate_wrong_correct_runs"]), "Tables A10, A15: δ by class outcome"
                ),
            ],
        ),
        Section(
            "paper",
            "Beside the paper",
            [
                *table(tables.comparison(analysis["comparison"])),
                *table(tables.rank_agreement(analysis["rank_agreement"])),
            ],
            "The paper has no numbers for these datasets.",
        ),
        Section(
            "training",
            "Training",
            [Part(curve, curve.caption if number > 2 else "") for number, curve in enumerate(curves)],
            "No training history was given.",
        ),
    ]
    explored = explorer(runs, results.runs, results.images)
    claims = tables.claims(analysis["claims"])
    html = render_template(
        "page.html.j2",
        experiment=name,
        facts=_facts(analysis["segmentation_runs"]),
        summary=downloadable(tables.summary(analysis["segmentation"], analysis["classification"], printed), analysis),
        verdicts=_verdicts(analysis["claims"]),
        claims=downloadable(claims, analysis),
        datasets=datasets,
        explorer=explored,
        sections=[section for section in sections if section.parts or section.absent],
        provenance=provenance,
        runs=downloadable(tables.runs(analysis["segmentation_runs"], analysis["classification_runs"]), analysis),
        more=_more(analysis, sections),
    )
    return Page(html, explored.files, [*found, *gates, *curves])


def write(
    folder: Storage,
    name: str,
    analysis: Tables,
    results: ResultTables,
    provenance: dict[str, str],
    datasets: dict[str, str],
) -> Page:
    """Render the report to ``folder/index.html``, with its pictures beside it where they are many."""
    page = render(name, analysis, results, provenance, datasets)
    for path, script in page.files.items():
        (folder / path).write_text(script)
    (folder / "index.html").write_text(page.html)
    for file in (folder / PICTURES_FOLDER).children():  # of a report that was here before; others are not ours
        if re.fullmatch(PICTURES_FILE, file.name) and f"{PICTURES_FOLDER}/{file.name}" not in page.files:
            file.remove()
    return page


def _parts(drawings: Iterable[Drawing]) -> list[Part]:
    return [Part(drawing) for drawing in drawings]


def _facts(runs: pa.Table) -> list[tuple[str, Any]]:
    """What the page's head says: (label, value)."""
    names = {"Datasets": "dataset", "Methods": "method", "Variants": "variant", "Presets": "preset", "Seeds": "seed"}
    listed = [(label, ", ".join(map(str, pc.unique(runs[column]).to_pylist()))) for label, column in names.items()]
    return [("Runs", len(runs)), *listed]


def _verdicts(claims: pa.Table) -> list[tuple[str, str, int]]:
    """(verdict, colour, how many claims), those that could be told first."""
    counts = Counter(claims["verdict"].to_pylist())
    return [(verdict, tone, counts[verdict]) for verdict, tone in tables.VERDICTS.items() if counts[verdict]]


def _more(analysis: Tables, sections: Sequence[Section]) -> list[MoreTable]:
    """The tables of the analysis that the sections do not show, to take away while they are small."""
    shown = {part.content.name for section in sections for part in section.parts if part.is_table}
    more = []
    for name, table in analysis.items():
        if name not in shown:
            links = data_links(name, table) if table.nbytes <= MAX_DOWNLOAD_BYTES else []
            more.append(MoreTable(name, len(table), CONTRACTS[name].row, links))
    return more

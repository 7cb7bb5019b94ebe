"""The page about an audit: what was checked, what was found, and the worst cases to look at.

It is made from the Parquet files that :func:`btinet.datasets.audit.write` leaves, and from nothing else.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from dataclasses import dataclass
from math import floor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from btinet.datasets.sample import Check
from btinet.errors import InputError
from btinet.report.tables import NOTHING, Cell, HtmlTable
from btinet.report.templates import render_template
from btinet.storage import Storage

TABLES = ("audit", "classes", "findings", "samples", "duplicates", "previews")

MAX_MESSAGES = 100
"""How many findings of a check the page lists."""

CHECKS = {
    Check.LAYOUT: ("Layout", "A folder of the dataset is missing, or a file has a name that does not belong there."),
    Check.METADATA: ("Metadata", "A row of the metadata cannot be used: an unknown label, a repeated image."),
    Check.MISSING_FILE: ("Missing files", "Named by the metadata or the layout, and not there."),
    Check.ORPHAN_FILE: ("Orphan files", "There, and named by no row of the metadata."),
    Check.UNREADABLE: ("Unreadable files", "Truncated, empty, not an image, or of a kind that is not read."),
    Check.SIZE_MISMATCH: ("Image and mask differ in size", "They cannot be laid over each other."),
    Check.NON_BINARY_MASK: ("Masks that are not binary", "Many pixels are neither lesion nor background."),
    Check.EMPTY_MASK: ("Empty masks", "Nothing is marked in a class that has lesions."),
    Check.FULL_MASK: ("Full masks", "Every pixel is marked as lesion: look whether it fills the picture."),
    Check.UNEXPECTED_MASK: ("Unexpected masks", "A lesion is marked in a class that has none."),
    Check.CLASS_SIZE: ("Class sizes", "A class is missing, or too small to be in every split."),
    Check.EXACT_DUPLICATE: ("Exact duplicates", "The same picture, pixel by pixel, under several names."),
    Check.NEAR_DUPLICATE: (
        "Near-duplicates",
        "Nearly the same picture: mirrored, brightened, annotated or compressed, or the next frame or slice.",
    ),
    Check.DUPLICATE_ACROSS_CLASSES: (
        "Duplicates across classes",
        "Nearly the same picture under different labels: look which label is wrong.",
    ),
    Check.DUPLICATE_ACROSS_SPLITS: (
        "Duplicates across splits",
        "What is trained on is tested on, which flatters every result. Split policy 'clean' keeps duplicates together.",
    ),
    Check.GROUP_ACROSS_SPLITS: (
        "Groups across splits",
        "Images of one lesion or patient are trained on and tested on, which flatters every result.",
    ),
}
"""Title and meaning of each check."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Card:
    """One image and what is said beneath it."""

    picture: str
    """data: URI"""
    sample_id: str
    source: str
    lines: list[str]


@dataclass(frozen=True)
class Case:
    """A finding to look at."""

    heading: str
    """Empty for a single image: the card says it all."""
    cards: list[Card]


@dataclass(frozen=True)
class Section:
    """What one check found."""

    id: str
    title: str
    meaning: str
    severity: str
    count: int
    cases: list[Case]
    messages: list[tuple[str, str]]
    """(where, what) of the first findings."""


def render(tables: dict[str, pa.Table]) -> str:
    """The page as one HTML document without outside resources; the same input gives the same bytes.

    Args:
        tables: by the names in TABLES, as :func:`btinet.datasets.audit.write` describes them.
    """
    (audited,) = tables["audit"].to_pylist()
    return render_template(
        "audit_page.html.j2",
        audited=audited,
        facts=_facts(tables),
        verdict=_verdict(tables["findings"]),
        classes=_classes(tables["classes"]),
        checks=_checks(tables["findings"]),
        sections=_sections(tables),
    )


def write(folder: Storage) -> Storage:
    """Render the audit in ``folder`` to ``folder/index.html``, which is returned.

    Raises:
        InputError: the folder holds no audit.
    """
    missing = [name for name in TABLES if not (folder / f"{name}.parquet").exists()]
    if missing:
        raise InputError(f"{folder}: no audit here: {missing[0]}.parquet is missing; run `btinet data audit` first")
    page = folder / "index.html"
    page.write_text(render({name: (folder / f"{name}.parquet").read_table() for name in TABLES}))
    return page


def _facts(tables: dict[str, pa.Table]) -> list[tuple[str, str]]:
    """What the page's head says: (label, value)."""
    findings, exact = tables["findings"], pc.sum(tables["duplicates"]["exact"]).as_py() or 0
    numbers = {
        "Images": pc.sum(tables["classes"]["listed"]).as_py() or 0,
        "Usable": len(tables["samples"]),
        "Errors": _count(findings, "severity", "error"),
        "Warnings": _count(findings, "severity", "warning"),
        "Exact pairs": exact,
        "Near pairs": len(tables["duplicates"]) - exact,
        "Clusters": pc.count_distinct(tables["samples"]["cluster"]).as_py(),
        "Clusters across classes": _count(findings, "check", Check.DUPLICATE_ACROSS_CLASSES),
        "Clusters across splits": _count(findings, "check", Check.DUPLICATE_ACROSS_SPLITS),
    }
    return [(label, f"{number:,}") for label, number in numbers.items()]


def _verdict(findings: pa.Table) -> str:
    errors, warnings = (_count(findings, "severity", severity) for severity in ("error", "warning"))
    judge = f" {warnings:,} warning(s) are for a person to judge." if warnings else ""
    if errors:
        return f"{errors:,} error(s) keep this dataset from being prepared: mend them and audit again.{judge}"
    return f"Nothing keeps this dataset from being prepared.{judge or ' Nothing wrong was found.'}"


def _classes(classes: pa.Table) -> HtmlTable:
    columns = ("listed", "usable", "marked", "train", "val", "test")
    rows = [([Cell(row["class"])], [Cell(f"{row[column]:,}") for column in columns]) for row in classes.to_pylist()]
    if rows:
        totals = [Cell(f"{pc.sum(classes[column]).as_py():,}", strong=True) for column in columns]
        rows.append(([Cell("all")], totals))
    return HtmlTable(
        "Images by class: all that are listed, those that can be used, those with a lesion marked, and those "
        "in each split.",
        ["Class"],
        ["Listed", "Usable", "With lesion", "Train", "Val", "Test"],
        rows,
    )


def _checks(findings: pa.Table) -> HtmlTable:
    rows = []
    for check, (title, meaning) in CHECKS.items():
        of_check = findings.filter(pc.field("check") == check)
        severity = ", ".join(sorted(set(of_check["severity"].to_pylist()))) or NOTHING
        cells = [
            Cell(f"{len(of_check):,}", strong=len(of_check) > 0),
            Cell(severity, words=True),
            Cell(meaning, words=True),
        ]
        rows.append(([Cell(title)], cells))
    return HtmlTable("What was looked for, and how often it was found.", ["Check"], ["Found", "Is", "Meaning"], rows)


def _sections(tables: dict[str, pa.Table]) -> list[Section]:
    """A section for each check that found something, errors first."""
    previews = defaultdict(list)
    for preview in tables["previews"].to_pylist():
        previews[preview["finding"]].append(preview)
    pairs = {frozenset((pair["a"], pair["b"])): pair for pair in tables["duplicates"].to_pylist()}
    samples = {row["sample_id"]: row for row in tables["samples"].to_pylist()}
    by_check: dict[tuple[str, str], dict[int, Row]] = defaultdict(dict)
    for number, finding in enumerate(tables["findings"].to_pylist()):
        by_check[finding["check"], finding["severity"]][number] = finding
    return [
        Section(
            id=f"{check}-{severity}",
            title=CHECKS[Check(check)][0],
            meaning=CHECKS[Check(check)][1],
            severity=severity,
            count=len(findings),
            cases=[
                Case(_heading(findings[number], samples), _cards(shown, pairs))
                for number, shown in previews.items()
                if number in findings
            ],
            messages=[(finding["where"], finding["message"]) for finding in findings.values()][:MAX_MESSAGES],
        )
        for (check, severity), findings in by_check.items()
    ]


def _heading(finding: Row, samples: dict[str, Row]) -> str:
    """How many images, of which classes, in which splits; not all of them may be shown."""
    members = [samples[sample_id] for sample_id in finding["samples"]]
    if len(members) == 1:
        return ""
    classes, splits = (
        ", ".join(sorted({member[column] for member in members if member[column] is not None}))
        for column in ("class", "assigned_split")
    )
    return " · ".join(filter(None, (f"{len(members)} images", classes, splits)))


def _cards(previews: list[Row], pairs: dict[frozenset[str], Row]) -> list[Card]:
    """The images of one finding; each is compared with those before it."""
    cards = []
    for position, preview in enumerate(previews):
        lines = [" · ".join(filter(None, (preview["class"], preview["split"])))]
        if preview["group_id"] is not None:
            lines.append(f"group {preview['group_id']}")
        alike = []
        for earlier, other in enumerate(previews[:position], start=1):
            pair = pairs.get(frozenset((preview["sample_id"], other["sample_id"])))
            if pair is not None:
                alike.append((pair["similarity"], -earlier, pair["exact"]))
        if alike:
            similarity, earlier, exact = max(alike)
            number = f"image {-earlier}"
            # rounded down: what is not identical does not read 1.00
            lines.append(f"identical to {number}" if exact else f"{floor(100 * similarity) / 100:.2f} like {number}")
        picture = "data:image/jpeg;base64," + base64.b64encode(preview["jpeg"]).decode()
        cards.append(Card(picture, preview["sample_id"], preview["source"], lines))
    return cards


def _count(table: pa.Table, column: str, value: str) -> int:
    return len(table.filter(pc.field(column) == value))

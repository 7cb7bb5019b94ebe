"""Everything that is wrong with a dataset, all of it at once.

``audit`` decodes every sample once and keeps what is known of it, not its pixels; ``write`` leaves Parquet files,
from which :mod:`btinet.report.audit_page` makes a page for people.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image
from rich import box
from rich.markup import escape
from rich.table import Table
from scipy.ndimage import binary_erosion

from btinet.config import SplitPolicy
from btinet.datasets.duplicates import clusters, find_duplicates
from btinet.datasets.examine import FACTS, dataset_findings, examine, map_in_order
from btinet.datasets.sample import Check, Finding, Pixels, Reader, Sample
from btinet.datasets.splits import SPLITS, assign
from btinet.errors import InputError
from btinet.storage import Storage

PREVIEWS_PER_CHECK = 48
"""How many images are kept to look at, for each check."""
CLUSTER_MEMBERS = 6
"""How many of them come from one finding."""
PREVIEW_SIDE = 160
"""The longest side of a preview, in pixels."""
PREVIEW_QUALITY = 80
OUTLINE = (0, 255, 140)
"""RGB of the line around the lesion: a colour that neither skin nor grey images have."""

MAX_LISTED_ERRORS = 50
"""How many errors the terminal shows."""
MAX_LISTED_WARNINGS = 3
"""How many warnings of each check the terminal shows."""

FINDINGS = pa.schema(
    [
        pa.field("check", pa.string(), False),
        pa.field("severity", pa.string(), False),  # error, warning
        pa.field("where", pa.string(), False),
        pa.field("message", pa.string(), False),
        pa.field("samples", pa.list_(pa.string()), False),  # ids
    ]
)

CLASSES = pa.schema(
    [
        pa.field("class", pa.string(), False),
        # samples: in the layout, decoded, with a lesion, and in each split
        *(pa.field(count, pa.int64(), False) for count in ("listed", "usable", "marked", *SPLITS)),
    ]
)

PREVIEWS = pa.schema(
    [
        pa.field("finding", pa.int32(), False),  # row of the findings
        pa.field("sample_id", pa.string(), False),
        pa.field("class", pa.string(), False),
        pa.field("split", pa.string()),  # the one that was audited
        pa.field("group_id", pa.string()),
        pa.field("source", pa.string(), False),
        pa.field("jpeg", pa.binary(), False),
    ]
)

Described = dict[str, str | None]
"""What a preview says of its sample: a row of PREVIEWS without the finding and the picture."""
Similarity = dict[frozenset[str | None], float]
"""Of each pair of duplicates."""


class Audit(NamedTuple):
    """What was found."""

    name: str
    origin: str
    """Where the samples come from."""
    policy: SplitPolicy
    seed: int
    note: str
    """Why the policy's splits were not looked at; empty if they were."""
    findings: list[Finding]
    """Errors first, then by check and place."""
    facts: pa.Table
    """FACTS of the samples that could be decoded, sorted by sample_id."""
    splits: list[str | None]
    """The split that the policy puts each of them in, row-aligned with ``facts``."""
    pairs: pa.Table
    """Duplicates among them (duplicates.DUPLICATES)."""
    classes: pa.Table
    """CLASSES, a row a class."""

    @property
    def has_errors(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)


def audit(
    name: str,
    reader: Reader,
    policy: SplitPolicy,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Decode every sample once and list everything that is wrong; no more than a few images are in memory.

    Args:
        name: the dataset's, for people.
        policy: the splits to look at (see :func:`btinet.datasets.splits.assign`); where it does not fit the
            dataset, the authors' own are looked at instead.
        seed: of the splits.
        on_progress: called with (samples done, samples in all) after each sample.
    """
    samples = reader.samples()
    found = list(reader.findings())
    rows: list[dict[str, object]] = []
    for done, outcome in enumerate(map_in_order(lambda sample: _measure(reader, sample), samples), start=1):
        if isinstance(outcome, Finding):
            found.append(outcome)
        else:
            rows.append(outcome)
        if on_progress is not None:
            on_progress(done, len(samples))
    facts = pa.Table.from_pylist(rows, FACTS)
    pairs = find_duplicates(*(facts[column].to_pylist() for column in ("sample_id", "pixels_hash", "fingerprint")))
    splits, note = _splits(facts, pairs, policy, seed)
    found += dataset_findings(reader.classes, reader.healthy, facts, pairs, splits)
    return Audit(
        name=name,
        origin=reader.origin,
        policy=policy,
        seed=seed,
        note=note,
        findings=sorted(found, key=_order),
        facts=facts,
        splits=splits,
        pairs=pairs,
        classes=_classes(reader.classes, samples, facts, splits),
    )


def findings_table(findings: Iterable[Finding]) -> pa.Table:
    """FINDINGS, a row a finding."""
    return pa.Table.from_pylist([finding._asdict() for finding in findings], FINDINGS)


def samples_table(audit: Audit) -> pa.Table:
    """FACTS without the fingerprint, and: class (its name), assigned_split, cluster (of duplicates; null if alone)."""
    cluster = clusters(audit.facts["sample_id"].to_pylist(), audit.pairs)
    is_alone = np.bincount(cluster)[cluster] == 1
    columns = {
        "class": pa.array(_class_names(audit), pa.string()),
        "assigned_split": pa.array(audit.splits, pa.string()),
        "cluster": pa.array(cluster, pa.int64(), mask=is_alone),
    }
    table = audit.facts.drop_columns("fingerprint")
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table


def previews(audit: Audit, reader: Reader) -> pa.Table:
    """PREVIEWS: small JPEGs of the worst cases of each check, the lesion outlined, worst case first.

    Samples are decoded again; one that could not be decoded has no preview.
    """
    described = {
        row["sample_id"]: row | {"split": split, "class": name}
        for row, split, name in zip(
            audit.facts.select(["sample_id", "group_id", "source"]).to_pylist(),
            audit.splits,
            _class_names(audit),
            strict=True,
        )
    }
    similarity = {frozenset((pair["a"], pair["b"])): pair["similarity"] for pair in audit.pairs.to_pylist()}
    chosen = _worst_cases(audit.findings, described, similarity)
    wanted = {sample_id for _, sample_id in chosen}
    samples = [sample for sample in reader.samples() if sample.sample_id in wanted]
    jpegs = dict(map_in_order(lambda sample: (sample.sample_id, _preview(reader.load(sample))), samples))
    rows = [{"finding": number, **described[sample_id], "jpeg": jpegs[sample_id]} for number, sample_id in chosen]
    return pa.Table.from_pylist(rows, PREVIEWS)


def write(audit: Audit, reader: Reader, folder: Storage) -> None:
    """Write the Parquet files that ``btinet.report.audit_page`` reads.

    audit (one row: what was audited), classes, findings, samples, duplicates, previews; see the functions above.
    """
    what = {field: getattr(audit, field) for field in ("name", "origin", "policy", "seed", "note")}
    tables = {
        "audit": pa.Table.from_pylist([what]),
        "classes": audit.classes,
        "findings": findings_table(audit.findings),
        "samples": samples_table(audit),
        "duplicates": audit.pairs,
        "previews": previews(audit, reader),
    }
    for name, table in tables.items():
        (folder / f"{name}.parquet").write_table(table)


def summary(audit: Audit) -> Table:
    """The findings for a terminal: a row a check; errors one by one, warnings by their first examples."""
    table = Table(title=f"audit of {audit.name}", caption=audit.note or None, box=box.SIMPLE_HEAD, show_lines=True)
    for column in ("check", "severity"):
        table.add_column(column, no_wrap=True)
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("first", overflow="fold")
    by_check: dict[tuple[Check, str], list[Finding]] = defaultdict(list)
    for finding in audit.findings:
        by_check[finding.check, finding.severity].append(finding)
    errors_left = MAX_LISTED_ERRORS
    for (check, severity), findings in by_check.items():
        is_error = severity == "error"
        listed = findings[: errors_left if is_error else MAX_LISTED_WARNINGS]
        errors_left -= len(listed) if is_error else 0
        lines = [escape(str(finding)) for finding in listed]
        if len(findings) > len(listed):
            lines.append(f"and {len(findings) - len(listed)} more: findings.parquet")
        table.add_row(check, f"[red]{severity}[/]" if is_error else severity, str(len(findings)), "\n".join(lines))
    if not audit.findings:
        table.add_row("nothing found", "", "", "")
    return table


def _measure(reader: Reader, sample: Sample) -> dict[str, object] | Finding:
    """What is known of a sample; its pixels are let go here, before results wait for their turn."""
    outcome = examine(reader, sample)
    return outcome if isinstance(outcome, Finding) else outcome.facts


def _splits(facts: pa.Table, pairs: pa.Table, policy: SplitPolicy, seed: int) -> tuple[list[str | None], str]:
    """Each sample's split, and why it is not the policy's if it is not."""
    try:
        return assign(facts, pairs, policy, seed).tolist(), ""
    except InputError as error:
        own: list[str | None] = facts["split"].to_pylist()
        instead = "the authors' own splits" if any(own) else "none"
        return own, f"policy {policy!r} cannot split these samples, so {instead} were looked at: {error}"


def _classes(names: tuple[str, ...], samples: list[Sample], facts: pa.Table, splits: list[str | None]) -> pa.Table:
    listed = Counter(sample.label for sample in samples)
    labels = facts["label"].to_pylist()
    usable = Counter(labels)
    marked = Counter(facts.filter(pc.field("marked") > 0)["label"].to_pylist())
    assigned = Counter(zip(labels, splits, strict=True))
    return pa.Table.from_pylist(
        [
            {"class": name, "listed": listed[label], "usable": usable[label], "marked": marked[label]}
            | {split: assigned[label, split] for split in SPLITS}
            for label, name in enumerate(names)
        ],
        CLASSES,
    )


def _class_names(audit: Audit) -> list[str]:
    """The name of each sample's class, row-aligned with the facts."""
    names = audit.classes["class"].to_pylist()
    return [names[label] for label in audit.facts["label"].to_pylist()]


def _order(finding: Finding) -> tuple[object, ...]:
    """Errors first, then by check and place."""
    return finding.severity, list(Check).index(finding.check), finding.where, finding.message


def _worst_cases(
    findings: list[Finding], described: dict[str, Described], similarity: Similarity
) -> list[tuple[int, str]]:
    """(row of the finding, sample_id) of what to show: worst first, PREVIEWS_PER_CHECK of each check at most.

    Worst are findings that cross classes, then splits, then groups, and then the largest.
    """
    cases = []
    for number, finding in enumerate(findings):
        members = [described[sample_id] for sample_id in finding.samples if sample_id in described]
        if members:
            cases.append((number, members))
    cases.sort(key=lambda case: _badness(case[1]))
    room = Counter(dict.fromkeys(Check, PREVIEWS_PER_CHECK))
    chosen = []
    for number, members in cases:
        check = findings[number].check
        if min(len(members), CLUSTER_MEMBERS) <= room[check]:
            shown = _most_telling(members, similarity)
            room[check] -= len(shown)
            chosen += [(number, str(member["sample_id"])) for member in shown]
    return chosen


def _badness(members: list[Described]) -> tuple[object, ...]:
    """Sorts the worst first."""
    crossed = [len({member[column] for member in members}) > 1 for column in ("class", "split", "group_id")]
    return *(not crosses for crosses in crossed), -len(members)


def _most_telling(members: list[Described], similarity: Similarity) -> list[Described]:
    """CLUSTER_MEMBERS at most: two alike that cross classes or splits, then whatever is most like those before."""

    def alike(a: Described, b: Described) -> float:
        return similarity.get(frozenset((a["sample_id"], b["sample_id"])), 0)

    def telling(a: Described, b: Described) -> tuple[float, ...]:
        return alike(a, b) > 0, a["class"] != b["class"], a["split"] != b["split"], alike(a, b)

    if len(members) == 1:
        return members
    chosen = list(max(combinations(members, 2), key=lambda pair: telling(*pair)))
    rest = [member for member in members if member not in chosen]
    while rest and len(chosen) < CLUSTER_MEMBERS:
        nearest = max(rest, key=lambda member: max(alike(member, other) for other in chosen))
        chosen.append(nearest)
        rest.remove(nearest)
    return chosen


def _preview(pixels: Pixels) -> bytes:
    image = Image.fromarray(pixels.image)
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    mask = Image.fromarray(pixels.mask).resize(image.size, Image.Resampling.NEAREST)
    drawn = np.array(image)
    drawn[_outline(np.asarray(mask))] = OUTLINE
    stream = io.BytesIO()
    # without chroma subsampling, which would smear a thin coloured line
    Image.fromarray(drawn).save(stream, "JPEG", quality=PREVIEW_QUALITY, subsampling=0)
    return stream.getvalue()


def _outline(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The marked pixels of [H, W] that have an unmarked neighbour; a mark that reaches the border is left open."""
    return (mask > 0) & ~binary_erosion(mask, border_value=1)

"""The page about a prepared dataset: its classes, lesions, intensities, duplicates and splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from btinet.datasets.duplicates import clusters
from btinet.report import figures
from btinet.report.tables import NOTHING, Cell, HtmlTable
from btinet.report.templates import render_template

SPLITS = ("train", "val", "test")

POLICIES = {
    "paper": "as the paper describes it: stratified 70/15/15; groups stay together; an official test set is kept",
    "clean": "as paper, but no duplicate cluster is torn apart",
    "paper-n1503": "LEAKY: by image, whatever its group; behind the paper's HAM10000 numbers",
    "manifest": "as the dataset's authors, or your manifest, say",
}


def render(manifest: dict[str, Any], samples: pa.Table, duplicates: pa.Table, splits: dict[str, pa.Table]) -> str:
    """The page as one HTML document without outside resources; the same input gives the same bytes.

    Args:
        manifest: of the prepared dataset, as JSON.
        samples: one row a sample (prepared.SAMPLES).
        duplicates: pairs of samples that show the same (duplicates.DUPLICATES).
        splits: split id -> sample_id, split; row-aligned with ``samples``.
    """
    labels = [manifest["classes"][label] for label in samples["label"].to_pylist()]
    units = clusters(samples["sample_id"].to_pylist(), duplicates).tolist()
    area = samples["gt_area"].to_numpy() / manifest["image_size"] ** 2
    return render_template(
        "dataset_page.html.j2",
        manifest=manifest,
        facts=_facts(manifest, samples, duplicates, units, labels),
        classes=_classes(manifest, labels, area),
        splits=_splits(samples, splits, units),
        areas=figures.histograms(
            {name: area[_is(labels, name) & (area > 0)] * 100 for name in manifest["classes"]},
            "lesion area, % of the image",
            "areas",
        ),
        intensities=figures.histograms(
            {name: samples["intensity_mean"].to_numpy()[_is(labels, name)] for name in manifest["classes"]},
            "mean grey value of an image, 0 to 255",
            "intensities",
        ),
    )


def _facts(
    manifest: dict[str, Any], samples: pa.Table, duplicates: pa.Table, units: list[int], labels: list[str]
) -> list[tuple[str, Any]]:
    groups = samples["group_id"].drop_null().unique()
    sizes = Counter(zip(samples["source_width"].to_pylist(), samples["source_height"].to_pylist(), strict=True))
    (width, height), _ = sizes.most_common(1)[0]
    exact = sum(duplicates["exact"].to_pylist())
    return [
        ("Samples", f"{len(samples):,}"),
        ("Classes", len(manifest["classes"])),
        ("Groups", f"{len(groups):,}" if len(groups) else "not known"),
        ("Original size", f"{width}x{height}" + (f" and {len(sizes) - 1} others" if len(sizes) > 1 else "")),
        ("Prepared size", f"{manifest['image_size']}x{manifest['image_size']}"),
        ("Exact duplicates", f"{exact:,} pairs"),
        ("Near-duplicates", f"{len(duplicates) - exact:,} pairs"),
        ("Clusters of duplicates", f"{sum(count > 1 for count in Counter(units).values()):,}"),
        ("of several classes", f"{_torn(units, labels):,}"),
    ]


def _classes(manifest: dict[str, Any], labels: list[str], area: np.ndarray) -> HtmlTable:
    rows = []
    for name in manifest["classes"]:
        own = area[_is(labels, name)]
        lesions = own[own > 0] * 100
        quartiles = (
            [f"{value:.1f}" for value in np.percentile(lesions, (25, 50, 75))] if len(lesions) else [NOTHING] * 3
        )
        counts = [f"{len(own):,}", f"{len(own) / len(labels):.1%}", f"{len(lesions):,}"]
        rows.append(([Cell(name)], [Cell(text) for text in (*counts, *quartiles)]))
    return HtmlTable(
        "Classes. The area is that of the lesion in percent of the image: quartiles over images that have one.",
        ["Class"],
        ["Images", "Share", "with a lesion", "Area, 25 %", "median", "75 %"],
        rows,
    )


def _splits(samples: pa.Table, splits: dict[str, pa.Table], units: list[int]) -> HtmlTable:
    groups = samples["group_id"].to_pylist()
    rows = []
    for name, table in splits.items():
        assigned = table["split"].to_pylist()
        policy, _, seed = name.rpartition("-s")
        counts = Counter(assigned)
        paper = splits.get(f"paper-s{seed}")
        moved = (
            f"{sum(a != b for a, b in zip(assigned, paper['split'].to_pylist(), strict=True)):,}"
            if policy == "clean" and paper is not None
            else NOTHING
        )
        torn_groups = _torn(
            [group for group in groups if group], [s for s, g in zip(assigned, groups, strict=True) if g]
        )
        rows.append(
            (
                [Cell(name, beneath=POLICIES[policy])],
                [
                    *(Cell(f"{counts[split]:,}") for split in SPLITS),
                    Cell(f"{torn_groups:,}" if any(groups) else NOTHING),
                    Cell(f"{_torn(units, assigned):,}"),
                    Cell(moved),
                ],
            )
        )
    return HtmlTable(
        "Splits. A group or cluster that is torn apart is trained on and tested on, which flatters every result.",
        ["Split"],
        ["Train", "Val", "Test", "Groups torn", "Clusters torn", "Moved against paper"],
        rows,
    )


def _torn(units: Sequence[Any], values: Sequence[Any]) -> int:
    """How many units have more than one value."""
    found = defaultdict(set)
    for unit, value in zip(units, values, strict=True):
        found[unit].add(value)
    return sum(len(each) > 1 for each in found.values())


def _is(labels: list[str], name: str) -> np.ndarray:
    return np.array(labels) == name

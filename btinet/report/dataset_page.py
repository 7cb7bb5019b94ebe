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
    "paper": "as the paper describes it: 70/15/15, stratified by class; groups stay together; an official test set is "
    "kept; nothing is done about duplicates",
    "clean": "as paper, but clusters of duplicates stay together, too; as few samples as possible move for that",
    "paper-n1503": "LEAKY: drawn by image, whatever its group, so that images of one lesion are in training and in "
    "test; behind the paper's HAM10000 numbers, and good for nothing but a comparison with them",
    "manifest": "as the dataset's authors, or your manifest, say",
}
"""What each policy does, in the order of the page."""


def render(manifest: dict[str, Any], samples: pa.Table, duplicates: pa.Table, splits: dict[str, pa.Table]) -> str:
    """The page as one HTML document without outside resources; the same input gives the same bytes.

    Args:
        manifest: of the prepared dataset, as JSON.
        samples: one row a sample (prepared.SAMPLES).
        duplicates: pairs of samples that show the same (duplicates.DUPLICATES).
        splits: split id -> sample_id, split; row-aligned with ``samples``.
    """
    labels = [manifest["classes"][label] for label in samples["label"].to_pylist()]
    area = samples["gt_area"].to_numpy() / manifest["image_size"] ** 2
    present = {split_id.rpartition("-s")[0] for split_id in splits}
    return render_template(
        "dataset_page.html.j2",
        manifest=manifest,
        facts=_facts(manifest, samples),
        duplicates=_duplicates(samples, duplicates, labels),
        classes=_classes(manifest, labels, area),
        policies={name: text for name, text in POLICIES.items() if name in present},
        splits=_splits(samples, duplicates, splits),
        areas=figures.histograms(
            {name: area[_is(labels, name) & (area > 0)] * 100 for name in manifest["classes"]},
            "lesion area, % of the image",
            "areas",
        ),
        intensities=figures.histograms(
            {name: samples["intensity_mean"].to_numpy()[_is(labels, name)] for name in manifest["classes"]},
            "mean grey value of an image: 0 is black, 255 is white",
            "intensities",
        ),
    )


def _facts(manifest: dict[str, Any], samples: pa.Table) -> list[tuple[str, str]]:
    groups = samples["group_id"].drop_null().unique()
    sizes = Counter(zip(samples["source_width"].to_pylist(), samples["source_height"].to_pylist(), strict=True))
    (width, height), _ = sizes.most_common(1)[0]
    return [
        ("Images", f"{len(samples):,}"),
        ("With a lesion", f"{sum(samples['has_mask'].to_pylist()):,}"),
        ("Classes", str(len(manifest["classes"]))),
        ("Groups (lesions, patients)", f"{len(groups):,}" if len(groups) else "not known"),
        ("Original size, px", f"{width}x{height}" + (f" mostly, {len(sizes)} in all" if len(sizes) > 1 else "")),
        ("Prepared size, px", f"{manifest['image_size']}x{manifest['image_size']}"),
    ]


def _duplicates(samples: pa.Table, duplicates: pa.Table, labels: list[str]) -> list[tuple[str, str]]:
    units = clusters(samples["sample_id"].to_pylist(), duplicates).tolist()
    sizes = [size for size in Counter(units).values() if size > 1]
    exact = sum(duplicates["exact"].to_pylist())
    return [
        ("Pairs alike pixel by pixel", f"{exact:,}"),
        ("Pairs nearly alike", f"{len(duplicates) - exact:,}"),
        ("Clusters", f"{len(sizes):,}"),
        ("Images in clusters", f"{sum(sizes):,}"),
        ("Clusters of several classes", f"{_torn(units, labels):,}"),
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
        "Images of each class, and how much of the image the lesion covers: a quarter of the lesions cover less than "
        "the lower quartile, half of them less than the median.",
        ["Class"],
        ["All", "Share", "With a lesion", "Lower quartile", "Median", "Upper quartile"],
        rows,
        spans=[("Images", 3), ("Lesion area, % of the image", 3)],
    )


def _splits(samples: pa.Table, duplicates: pa.Table, splits: dict[str, pa.Table]) -> HtmlTable:
    ids, groups = samples["sample_id"].to_pylist(), samples["group_id"].to_pylist()
    units = clusters(ids, duplicates).tolist()
    relatives = clusters(ids, duplicates, groups).tolist()
    rows = []
    for policy, seed in sorted((split_id.rpartition("-s")[::2] for split_id in splits), key=_order):
        assigned = splits[f"{policy}-s{seed}"]["split"].to_pylist()
        counts = Counter(assigned)
        grouped = [(group, split) for group, split in zip(groups, assigned, strict=True) if group is not None]
        trained_on = {unit for unit, split in zip(relatives, assigned, strict=True) if split == "train"}
        tested_on = [unit for unit, split in zip(relatives, assigned, strict=True) if split == "test"]
        leaked = sum(unit in trained_on for unit in tested_on)
        paper = splits.get(f"paper-s{seed}")
        moved = (
            f"{sum(a != b for a, b in zip(assigned, paper['split'].to_pylist(), strict=True)):,}"
            if policy == "clean" and paper is not None
            else NOTHING
        )
        name = Cell(policy, beneath="LEAKY" if POLICIES[policy].startswith("LEAKY") else "")
        values = [
            *(Cell(f"{counts[split]:,}") for split in SPLITS),
            Cell(f"{_torn(*zip(*grouped, strict=True)):,}" if grouped else NOTHING),
            Cell(f"{_torn(units, assigned):,}"),
            Cell(f"{leaked:,} ({leaked / len(tested_on):.0%})", strong=leaked > 0),
            Cell(moved),
        ]
        rows.append(([name, Cell(seed)], values))
    return HtmlTable(
        "The splits drawn so far. What is torn apart has images in more than one of train, val and test. A test image "
        "that shows the same, or the same lesion or patient, as a training image flatters every result.",
        ["Policy", "Seed"],
        ["Train", "Val", "Test", "Groups", "Duplicate clusters", "like one in train", "against paper"],
        rows,
        spans=[("Images", 3), ("Torn apart", 2), ("Test images", 1), ("Moved", 1)],
    )


def _order(split: tuple[str, ...]) -> tuple[int, int]:
    """Sorts (policy, seed) by the order of POLICIES."""
    policy, seed = split
    return list(POLICIES).index(policy), int(seed)


def _torn(units: Sequence[Any], values: Sequence[Any]) -> int:
    """How many units have more than one value."""
    found = defaultdict(set)
    for unit, value in zip(units, values, strict=True):
        found[unit].add(value)
    return sum(len(each) > 1 for each in found.values())


def _is(labels: list[str], name: str) -> np.ndarray:
    return np.array(labels) == name

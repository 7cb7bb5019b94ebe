"""The sample explorer's data: every test image of every run, its numbers and its pictures.

Numbers go into the page as columns. Pictures go into the page, too, while they are few, and otherwise into script files
beside it: a page opened from a disk may load scripts, but may not fetch.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from btinet.analysis.runs import EvaluatedRun
from btinet.evaluation.schema import LEVELS

INLINE_BYTES = 20 * 2**20
"""Pictures that take more than this, as text, go into files beside the page."""
CHUNK_BYTES = 2**17
"""About how much one such file holds: what a page loads to show a few samples."""
PICTURES_FOLDER = "pictures"
PICTURES_FILE = r"(in|out)-\d+\.js"
"""What the files in it are called."""

SIGNALS = {
    "w_seg": "w_seg",
    "w_clf": "w_clf",
    "delta": "δ = w_clf − w_seg",
    "align": "alignment",
    "seg_energy": "E_seg",
    "clf_energy": "E_clf",
    "tim_dseg_l1": "TIM |Δ seg|",
    "tim_dclf_l1": "TIM |Δ clf|",
}
"""Signals by level, and how the page calls them."""
QUANTITIES = {
    "iou": "IoU",
    "dice": "Dice",
    "precision": "Precision",
    "recall": "Recall",
    "conf": "Confidence",
    "entropy": "Entropy",
    "mc_seg_var": "MC variance",
    "mc_seg_entropy": "MC entropy, segmentation",
    "mc_seg_mi": "MC mutual information, segmentation",
    "mc_iou": "MC IoU",
    "mc_clf_entropy": "MC entropy, classification",
    "mc_clf_mi": "MC mutual information, classification",
    "gt_area": "Lesion area, px",
    "pred_area": "Predicted area, px",
}
"""Numbers without a level."""
OF_LESIONS = ("iou", "dice", "precision", "recall", "mc_iou")
"""Undefined on images without a lesion."""


@dataclass(frozen=True)
class Explorer:
    data: str
    """JSON, safe inside a <script> element."""
    inline: dict[str, str]
    """Chunks of pictures within the page, by name: JSON, as above."""
    files: dict[str, str]
    """Chunks of pictures as scripts, by path relative to the page; either these or ``inline``."""


def explorer(runs: Sequence[EvaluatedRun], run_table: pa.Table, images: pa.Table) -> Explorer:
    """What the page's explorer shows.

    Args:
        runs: each run's rows after its last stage.
        run_table: ``results/runs`` of these runs.
        images: ``results/images`` of their splits (schema.IMAGES); samples that it lacks are shown without pictures.
    """
    described = {row["run_id"]: row for row in run_table.to_pylist()}
    samples: dict[tuple[str, str], int] = {}  # (prepared dataset, sample_id) -> number
    run_numbers, sample_numbers = [], []
    for number, run in enumerate(runs):
        prepared = described[run.key["run_id"]]["prepared"]
        for sample_id in run.test["sample_id"].to_pylist():
            run_numbers.append(number)
            sample_numbers.append(samples.setdefault((prepared, sample_id), len(samples)))
    rows = pa.concat_tables([run.test for run in runs])
    inputs = {
        (prepared, sample_id): (image, mask)
        for prepared, sample_id, image, mask in _zip(images, "prepared", "sample_id", "image_jpeg", "mask_png")
    }
    chunks = {
        "in": _chunks(inputs.get(key, (None, None)) for key in samples),
        "out": _chunks(_zip(rows, "mask_png", "mc_var_png")),
    }
    named = {f"{kind}-{number}": chunk for kind in chunks for number, chunk in enumerate(chunks[kind])}
    is_inline = sum(len(chunk.pictures) for chunk in named.values()) <= INLINE_BYTES
    data = {
        "levels": LEVELS,
        "signals": {name: label for name, label in SIGNALS.items() if _is_there(rows, name)},
        "quantities": {name: label for name, label in QUANTITIES.items() if _is_there(rows, name)},
        "runs": [run.key | {"classes": described[run.key["run_id"]]["classes"]} for run in runs],
        "ids": [sample_id for _, sample_id in samples],
        "columns": {
            "run": run_numbers,
            "sample": sample_numbers,
            "group": rows["group_id"].to_pylist(),
            "truth": rows["y_true"].to_pylist(),
            "predicted": rows["y_pred"].to_pylist(),
            "lesion": rows["has_mask"].to_pylist(),
            "probs": [None if probs is None else _rounded(np.array(probs)) for probs in rows["probs"].to_pylist()],
            **{name: _level_values(rows, name) for name in SIGNALS if _is_there(rows, name)},
            **{name: _values(rows, name) for name in QUANTITIES if _is_there(rows, name)},
        },
        "chunks": {kind: [chunk.start for chunk in of_kind] for kind, of_kind in chunks.items()},
        "folder": None if is_inline else PICTURES_FOLDER,
    }
    return Explorer(
        data=_json(data),
        inline={name: chunk.pictures for name, chunk in named.items()} if is_inline else {},
        files={}
        if is_inline
        else {
            f"{PICTURES_FOLDER}/{name}.js": f'explorerPictures("{name}", {chunk.pictures});\n'
            for name, chunk in named.items()
        },
    )


@dataclass(frozen=True)
class _Chunk:
    """Pictures that the page loads together."""

    start: int
    """Number of the first entry."""
    pictures: str
    """JSON: for each entry, base64 of its pictures or null."""


def _chunks(entries: Iterable[Sequence[bytes | None]]) -> list[_Chunk]:
    """Entries in their order, in parts of about CHUNK_BYTES."""
    chunks, waiting, size, count = [], [], 0, 0
    for entry in entries:
        waiting.append([None if picture is None else base64.b64encode(picture).decode() for picture in entry])
        size += sum(len(picture) for picture in waiting[-1] if picture)
        count += 1
        if size >= CHUNK_BYTES:
            chunks.append(_Chunk(count - len(waiting), _json(waiting)))
            waiting, size = [], 0
    if waiting:
        chunks.append(_Chunk(count - len(waiting), _json(waiting)))
    return chunks


def _zip(table: pa.Table, *columns: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[column].to_pylist() for column in columns), strict=True)


def _is_there(rows: pa.Table, name: str) -> bool:
    """Whether any sample has it; delta follows from the gates."""
    column = "w_seg" if name == "delta" else name
    return bool(rows[column].null_count < len(rows))


def _level_values(rows: pa.Table, name: str) -> list[float | None]:
    """A signal's values, level by level for each sample: [n * 4]."""
    if name == "delta":
        return _rounded(_flat(rows, "w_clf") - _flat(rows, "w_seg"))
    return _rounded(_flat(rows, name))


def _flat(rows: pa.Table, name: str) -> NDArray[np.float64]:
    missing = [None] * len(LEVELS)
    return np.array([values or missing for values in rows[name].to_pylist()], np.float64).ravel()


def _values(rows: pa.Table, name: str) -> list[float | None]:
    values = np.asarray(rows[name].cast(pa.float64()).to_numpy())
    if name in OF_LESIONS:
        values = np.where(rows["has_mask"].to_numpy(), values, np.nan)
    return _rounded(values)


def _rounded(values: NDArray[np.float64]) -> list[float | None]:
    """To four significant digits, as the page shows them; None for what is not a number."""
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values.tolist()]


def _json(value: Any) -> str:
    """Compact JSON that does not end the element it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")

"""A results folder as evaluations leave it, made of drawn discs: any number of samples in seconds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from btinet.evaluation.schema import IMAGES, PREDICTIONS
from btinet.partitions import write_partition
from btinet.storage import Storage

CLASSES = ["benign", "malignant", "normal"]
TIM = ("tim_dclf_l1", "tim_dclf_l2", "tim_dseg_l1", "tim_dseg_l2")

Mask = NDArray[np.bool_]


def write_results(
    root: Storage,
    datasets: Sequence[str] = ("phantom",),
    methods: Sequence[str] = ("btinet", "unet", "mtan"),
    seeds: Sequence[int] = (42, 123),
    samples: int = 30,
    size: int = 32,
) -> list[str]:
    """Write ``root/results`` with a run for every dataset, method and seed; returns their run_ids.

    ``unet`` only segments, and ``btinet`` alone has gates. Every third sample has no lesion. w_seg rises as the IoU
    falls, with noise.
    """
    run_ids = []
    for dataset in datasets:
        for seed in seeds:
            rng = np.random.default_rng([seed, len(dataset)])
            truths = [_disc(rng, size) if number % 3 < 2 else np.zeros((size, size), bool) for number in range(samples)]
            folder = root / "results" / "images" / f"dataset={dataset}"
            write_partition(folder / f"feed-paper-s{seed}.parquet", _images(rng, dataset, seed, truths))
            for method in methods:
                run_id = f"{dataset}-{method}-full-{seed}-tiny-0123456789"
                run_ids.append(run_id)
                tables = {
                    f"predictions/{run_id}": _predictions(rng, dataset, method, seed, run_id, truths),
                    f"runs/{run_id}": _run(dataset, method, seed, run_id),
                    f"epochs/{run_id}-stage1": _epochs(rng, dataset, method, run_id),
                }
                for name, table in tables.items():
                    kind, _, file = name.partition("/")
                    path = f"results/{kind}/dataset={dataset}/method={method}/{file}.parquet"
                    write_partition(root / path, table)
    return run_ids


def _disc(rng: np.random.Generator, size: int) -> Mask:
    x, y, radius = rng.uniform(0.3, 0.7) * size, rng.uniform(0.3, 0.7) * size, rng.uniform(0.12, 0.28) * size
    rows, columns = np.mgrid[:size, :size]
    return np.asarray((rows - y) ** 2 + (columns - x) ** 2 < radius**2)


def _images(rng: np.random.Generator, dataset: str, seed: int, truths: Sequence[Mask]) -> pa.Table:
    rows = [
        {
            "dataset": dataset,
            "prepared": "feed",
            "split_id": f"paper-s{seed}",
            "sample_id": _name(seed, number),
            "label": _label(number),
            "class": CLASSES[_label(number)],
            "image_jpeg": _encoded((60 + 90 * truth + rng.uniform(0, 60, truth.shape)).astype(np.uint8), "JPEG"),
            "mask_png": _encoded(truth, "PNG"),
        }
        for number, truth in enumerate(truths)
    ]
    return pa.Table.from_pylist(rows, IMAGES)


def _predictions(
    rng: np.random.Generator, dataset: str, method: str, seed: int, run_id: str, truths: Sequence[Mask]
) -> pa.Table:
    stage = 2 if method == "btinet" else 1
    rows = []
    for split in ("val", "test"):
        for number, truth in enumerate(truths):
            mask = np.roll(truth, rng.integers(0, truth.shape[0] // 4, 2), (0, 1))
            tp, fp, fn = (int(part.sum()) for part in (mask & truth, mask & ~truth, ~mask & truth))
            row = dict.fromkeys(PREDICTIONS.names) | {
                "run_id": run_id,
                "preset": "tiny",
                "dataset": dataset,
                "method": method,
                "variant": "full",
                "seed": seed,
                "split_id": f"paper-s{seed}",
                "stage": stage,
                "split": split,
                "sample_id": _name(seed, number) if split == "test" else f"val {number}",
                "y_true": _label(number),
                "has_mask": bool(truth.any()),
                "gt_area": int(truth.sum()),
                "tp": tp,
                "fp": fp,
                "fn": fn,
                "pred_area": int(mask.sum()),
                "iou": tp / max(1, tp + fp + fn),
                "dice": 2 * tp / max(1, 2 * tp + fp + fn),
                "precision": tp / max(1, tp + fp),
                "recall": tp / max(1, tp + fn),
                "soft_iou": tp / max(1, tp + fp + fn),
                "mask_conf": tp / max(1, tp + fp),
                "empty_pred": not mask.any(),
            }
            if split == "test":
                row["mask_png"] = _encoded(mask, "PNG")
            if method != "unet":
                row |= _classified(rng, _label(number))
            if method == "btinet":
                row |= _signals(rng, row["iou"])
                if split == "test":
                    row["mc_var_png"] = _encoded((255 * (mask ^ truth) * rng.uniform()).astype(np.uint8), "PNG")
            rows.append(row)
    return pa.Table.from_pylist(rows, PREDICTIONS)


def _classified(rng: np.random.Generator, label: int) -> dict[str, Any]:
    probs = rng.dirichlet(np.ones(3) + 2 * (np.arange(3) == label))
    return {
        "probs": probs,
        "conf": probs.max(),
        "entropy": float(-(probs * np.log(probs)).sum()),
        "y_pred": int(probs.argmax()),
        "correct": int(probs.argmax()) == label,
    }


def _signals(rng: np.random.Generator, iou: float) -> dict[str, Any]:
    def levels(low: float, high: float) -> list[float]:
        return list(rng.uniform(low, high, 4))

    return {
        "w_seg": list(np.clip(0.8 - 0.5 * iou + rng.normal(0, 0.1, 4), 0, 1)),
        "w_clf": levels(0.3, 0.7),
        "align": levels(-1, 1),
        "seg_energy": levels(0, 3),
        "clf_energy": levels(0, 3),
        **{name: levels(0, 1) for name in TIM},
        "mc_T": 5,
        "mc_scope": "all",
        "mc_seg_var": float(max(0, 0.05 - 0.03 * iou + rng.normal(0, 0.01))),
        **{name: float(rng.uniform()) for name in ("mc_seg_entropy", "mc_seg_mi", "mc_seg_var_fg", "mc_iou")},
        **{name: float(rng.uniform()) for name in ("mc_clf_entropy", "mc_clf_mi", "mc_clf_var")},
    }


def _run(dataset: str, method: str, seed: int, run_id: str) -> pa.Table:
    row = {
        "run_id": run_id,
        "dataset": dataset,
        "method": method,
        "variant": "full",
        "preset": "tiny",
        "seed": seed,
        "prepared": "feed",
        "split_id": f"paper-s{seed}",
        "classes": CLASSES,
    }
    return pa.Table.from_pylist([row])


def _epochs(rng: np.random.Generator, dataset: str, method: str, run_id: str) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"dataset": dataset, "method": method, "run_id": run_id, "stage": 1, "epoch": epoch}
            | {"val_iou": 0.5 + 0.05 * epoch, "train_loss": float(rng.uniform())}
            for epoch in range(1, 5)
        ]
    )


def _label(number: int) -> int:
    return 2 if number % 3 == 2 else number % 2


def _name(seed: int, number: int) -> str:
    return f"s{seed} case {number:05d}"


def _encoded(pixels: NDArray[Any], format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()

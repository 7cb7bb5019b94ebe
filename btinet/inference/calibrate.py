"""A finished run's calibration: what predict needs to know beside the weights, kept with the run.

``runs/<run_id>/calibration.json``: thresholds for any risk follow from the validation split, and what an atypical
image is from (at most REFERENCE of) the training images; the test split shows what is then achieved. Its receipt is
``calibration-receipt.json``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from scipy.stats import binomtest, bootstrap

from btinet.calibration import distribution, reliability
from btinet.calibration.distribution import IMAGE_STATISTICS, Distribution
from btinet.calibration.reliability import FAILURE_IOU, Calibration, Part
from btinet.catalog import StoredRun
from btinet.config import BoundRun, Strict
from btinet.datasets.prepared import PreparedDataset, open_prepared
from btinet.datasets.splits import load_split
from btinet.errors import InputError
from btinet.evaluation.schema import LEVELS
from btinet.inference.predictor import Predictor, Prepared
from btinet.progress import OnBatch
from btinet.receipts import valid_receipt, write_receipt
from btinet.storage import Storage
from btinet.training.outputs import run_folder
from btinet.training.stage import load_model, require_stage

VERSION = 1
"""Of what is computed here. Raise it with any change, so that runs are calibrated again."""

REFERENCE = 1000
"""At most so many training images, evenly over the split, define what is typical."""

GATE_SIGNALS = ("w_seg", "w_clf", "align", "seg_energy", "clf_energy")


class Interval(Strict):
    """An estimate with its 95% confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class Group(Strict):
    """How predictions fail for some of the test images; shares with Wilson intervals."""

    name: str
    count: int
    mask_failed: Interval
    class_failed: Interval | None


class HeldOut(Strict):
    """What the held-out test split shows."""

    part: Part
    iou: Interval | None
    """Mean over the images with a lesion, bootstrapped over images; None where there are too few."""
    accuracy: Interval | None
    groups: tuple[Group, ...]


class Calibrated(Strict):
    """``calibration.json``."""

    calibration: Calibration
    distribution: Distribution
    test: HeldOut


class Judged(NamedTuple):
    """A sample's prediction beside its truth."""

    row: dict[str, float]
    """Its numbers and image statistics."""
    unit: str
    """Its group, or where it has none itself."""
    label: int
    iou: float
    """1 where neither truth nor prediction marks anything."""
    has_lesion: bool
    lesion_share: float
    class_failed: bool | None

    @property
    def mask_failed(self) -> bool:
        return self.iou < FAILURE_IOU


def calibrate(stored: StoredRun, device: torch.device, on_batch: OnBatch = lambda done, total: None) -> Calibrated:
    """Calibrate a trained run, or find that it is done.

    Raises:
        InputError: the run is not trained, or its prepared dataset is gone.
    """
    bound, root = stored.bound, stored.root
    stage = bound.run.stages[-1]
    receipt = require_stage(bound, stage, root)
    weights = [output.sha256 for path, output in receipt.outputs.items() if path.endswith("safetensors")]
    inputs: dict[str, Any] = {"run_id": bound.run_id, "weights": weights, "version": VERSION}
    file = run_folder(root, bound.run_id) / "calibration.json"
    receipt_file = run_folder(root, bound.run_id) / "calibration-receipt.json"
    if valid_receipt(receipt_file, root, inputs) is not None:
        return read_calibrated(file)
    started = time.time()
    prepared = open_prepared(root, bound.run.dataset.name, bound.prepared)
    calibrated = _calibrate(bound, root, prepared, device, on_batch)
    file.write_json(calibrated.model_dump(mode="json"))
    test = calibrated.test
    metrics: dict[str, float | int | str | None] = {
        "test_iou": test.iou.value if test.iou else None,
        "test_accuracy": test.accuracy.value if test.accuracy else None,
        "certifying_samples": len(calibrated.calibration.test.mask_score),
    }
    write_receipt(receipt_file, root, "calibration", inputs, [file], metrics, time.time() - started, str(device))
    return calibrated


def read_calibrated(file: Storage) -> Calibrated:
    """The content of a calibration.json.

    Raises:
        InputError: it is not one.
    """
    try:
        return Calibrated.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise InputError(f"{file}: not a calibration; remove it and export the run again: {error}") from error


def _calibrate(
    bound: BoundRun, root: Storage, prepared: PreparedDataset, device: torch.device, on_batch: OnBatch
) -> Calibrated:
    split = load_split(root, prepared, bound.run.dataset.split, bound.run.seed)
    rows = {name: split.rows(name) for name in ("train", "val", "test")}
    rows["train"] = rows["train"][:: -(-len(rows["train"]) // REFERENCE)]
    classes = prepared.manifest.classes
    predictor = Predictor(load_model(bound, bound.run.stages[-1], root, len(classes)), classes, device)
    size = bound.run.settings.train.val_batch_size
    total = sum(map(len, rows.values()))
    judged: dict[str, list[Judged]] = {name: [] for name in rows}
    for name, numbers in rows.items():
        for start in range(0, len(numbers), size):
            judged[name] += _judge_batch(predictor, prepared, numbers[start : start + size])
            on_batch(sum(map(len, judged.values())), total)

    features = [*IMAGE_STATISTICS, *_signal_columns(judged["train"][0].row, GATE_SIGNALS)]
    typical = distribution.fit([sample.row for sample in judged["train"]], features)
    calibration = _calibration(judged["val"], typical)
    test = _test_result(judged["test"], calibration, typical, classes)
    return Calibrated(calibration=calibration, distribution=typical, test=test)


def _judge_batch(predictor: Predictor, prepared: PreparedDataset, rows: np.ndarray) -> list[Judged]:
    """Predict prepared samples and compare with their truth."""
    samples = prepared.samples.take(rows).to_pylist()
    pixels, masks = prepared.images(rows), prepared.masks(rows)
    images = [
        Prepared(image, sample["source_width"], sample["source_height"])
        for image, sample in zip(pixels, samples, strict=True)
    ]
    judged = []
    for prediction, sample, truth in zip(predictor.predict(images), samples, masks > 0, strict=True):
        mask = prediction.probability >= 0.5
        union = np.count_nonzero(mask | truth)
        names = [f"p_{name}" for name in predictor.classes]
        probabilities = [prediction.numbers[name] for name in names if name in prediction.numbers]
        judged.append(
            Judged(
                row=prediction.numbers | prediction.statistics,
                unit=sample["group_id"] or sample["sample_id"],
                label=sample["label"],
                iou=np.count_nonzero(mask & truth) / union if union else 1.0,
                has_lesion=bool(truth.any()),
                lesion_share=float(truth.mean()),
                class_failed=int(np.argmax(probabilities)) != sample["label"] if probabilities else None,
            )
        )
    return judged


def _calibration(samples: list[Judged], typical: Distribution) -> Calibration:
    units = [sample.unit for sample in samples]
    learns = reliability.divide(units)
    tests = ~learns & reliability.first_of_unit(units)
    learning = [sample for sample, chosen in zip(samples, learns, strict=True) if chosen]
    testing = [sample for sample, chosen in zip(samples, tests, strict=True) if chosen]
    if not learning or not testing:
        raise InputError(f"a validation split of {len(samples)} samples is too small to calibrate on")
    columns = _signal_columns(learning[0].row, (*GATE_SIGNALS, "delta"))
    scores = {
        task: reliability.learn_score(
            {name: np.array([sample.row[name] for sample in learning]) for name in (trusted, *columns)},
            np.array([getattr(sample, f"{task}_failed") for sample in learning]),
            trusted,
        )
        for task, trusted in (("mask", "mask_confidence"), ("class", "confidence"))
        if getattr(learning[0], f"{task}_failed") is not None
    }
    parts = [_part(part, scores["mask"], scores.get("class"), typical) for part in (learning, testing)]
    return Calibration(mask=scores["mask"], classes=scores.get("class"), learn=parts[0], test=parts[1])


def _signal_columns(row: dict[str, float], signals: Sequence[str]) -> list[str]:
    names = [f"{signal}_{level}" for signal in signals for level in LEVELS]
    return [name for name in names if name in row]


def _part(
    samples: Sequence[Judged], mask: reliability.Score, classes: reliability.Score | None, typical: Distribution
) -> Part:
    return Part(
        atypicality=tuple(typical.distance(sample.row) for sample in samples),
        mask_score=tuple(mask.of(sample.row) for sample in samples),
        mask_failed=tuple(sample.mask_failed for sample in samples),
        class_score=tuple(classes.of(sample.row) for sample in samples) if classes else (),
        class_failed=tuple(bool(sample.class_failed) for sample in samples) if classes else (),
    )


def _test_result(
    samples: list[Judged], calibration: Calibration, typical: Distribution, classes: tuple[str, ...]
) -> HeldOut:
    lesions = [sample for sample in samples if sample.has_lesion]
    median = float(np.median([sample.lesion_share for sample in lesions])) if lesions else 0.0
    groups = {f"class {name}": [s for s in samples if s.label == label] for label, name in enumerate(classes)}
    groups["images without a lesion"] = [sample for sample in samples if not sample.has_lesion]
    groups[f"lesions below {median:.1%} of the image"] = [s for s in lesions if s.lesion_share < median]
    groups[f"lesions of at least {median:.1%} of the image"] = [s for s in lesions if s.lesion_share >= median]
    classified = [sample for sample in samples if sample.class_failed is not None]
    return HeldOut(
        part=_part(samples, calibration.mask, calibration.classes, typical),
        iou=_mean([sample.iou for sample in lesions]),
        accuracy=share(sum(not sample.class_failed for sample in classified), len(classified)) if classified else None,
        groups=tuple(_group(name, members) for name, members in groups.items() if members),
    )


def _group(name: str, samples: list[Judged]) -> Group:
    failed = [sample.class_failed for sample in samples]
    return Group(
        name=name,
        count=len(samples),
        mask_failed=share(sum(sample.mask_failed for sample in samples), len(samples)),
        class_failed=None if None in failed else share(sum(map(bool, failed)), len(samples)),
    )


def share(count: int, total: int) -> Interval:
    """A share with its Wilson interval."""
    found = binomtest(count, total).proportion_ci(method="wilson")
    return Interval(value=count / total, low=float(found.low), high=float(found.high))


def _mean(values: list[float]) -> Interval | None:
    """A mean with its percentile bootstrap interval; None below two values."""
    if len(values) < 2:
        return None
    found = bootstrap((values,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return Interval(value=float(np.mean(values)), low=float(low), high=float(high))

"""Segmentation (Table A17) and classification (Table A18) of a run's test samples."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from btinet.analysis.resampling import Floats, Weights, blocks
from btinet.analysis.schemas import CLASSIFICATION, SEGMENTATION
from btinet.analysis.scores import numbers
from btinet.analysis.summaries import Entry


def segmentation_entry(test: pa.Table, weights: Weights) -> Entry:
    """Table A17: per image with a mask, then averaged, in percent.

    Beyond the paper, which never scores false positives on images without a lesion (paper notes B19), on the
    ``n_empty`` samples without a mask: ``empty_area``, the mean predicted area in pixels of the prepared
    size, and ``empty_hit``, the percentage with any predicted pixel.
    """
    has_mask = np.asarray(test["has_mask"])
    masked, empty = test.filter(test["has_mask"]), test.filter(pc.invert(test["has_mask"]))
    of_masked, of_empty = weights[:, has_mask], weights[:, ~has_mask]
    means = _means(np.stack([numbers(masked[name]) for name in ("dice", "iou", "precision", "recall")]), of_masked)
    area = numbers(empty["pred_area"])
    dice, iou, precision, recall = 100 * means
    empty_area, hit = _means(np.stack([area, area > 0]), of_empty)
    values = (dice, iou, 100 * _median(numbers(masked["dice"]), of_masked), precision, recall, empty_area, 100 * hit)
    return Entry(
        {},
        {"n": len(masked), "n_empty": len(empty)},
        dict(zip(SEGMENTATION, values, strict=True)),
        None if len(masked) else "no samples with a mask",
    )


def classification_entry(test: pa.Table, weights: Weights) -> Entry:
    """Table A18, on all samples: accuracy in percent; precision, recall and F1 of each class, 0 where 0/0, averaged
    over the classes by their support (paper notes B47), in [0, 1], as the paper prints them."""
    note = None
    values = np.full((len(CLASSIFICATION), len(weights)), np.nan)
    if len(test) == 0:
        note = "no samples"
    elif test["y_pred"].null_count:
        note = "the method does not classify"
    else:
        values = _classification(np.asarray(test["y_true"]), np.asarray(test["y_pred"]), weights)
    return Entry({}, {"n": len(test)}, dict(zip(CLASSIFICATION, values, strict=True)), note)


def _classification(y_true: np.ndarray, y_pred: np.ndarray, weights: Weights) -> Floats:
    """Accuracy in percent, weighted precision, recall and F1, [4, m]."""
    classes, places = np.unique(np.concatenate([y_true, y_pred]), return_inverse=True)
    k = len(classes)
    cell = places[: len(y_true)] * k + places[len(y_true) :]
    confusion = _sums(np.eye(k * k)[cell].T, weights).T.reshape(-1, k, k)  # [m, true, predicted]
    hits, support, called = confusion.diagonal(axis1=1, axis2=2), confusion.sum(2), confusion.sum(1)
    share = support / support.sum(1, keepdims=True)
    precision, recall = hits / np.maximum(called, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(called + support, 1)
    weighted = [(share * of_class).sum(1) for of_class in (precision, recall, f1)]
    return np.stack([100 * hits.sum(1) / support.sum(1), *weighted])


def _means(values: Floats, weights: Weights) -> Floats:
    """Weighted mean of each row of values [k, n], [k, m]; NaN where the weights are all 0."""
    totals = weights.sum(1, dtype=np.int64)
    with np.errstate(invalid="ignore"):
        return _sums(values, weights) / np.where(totals > 0, totals, np.nan)


def _sums(values: Floats, weights: Weights) -> Floats:
    """[k, n], [m, n] -> [k, m]."""
    result = np.empty((len(values), len(weights)))
    for rows in blocks(weights):
        result[:, rows] = values @ weights[rows].T.astype(np.float64)
    return result


def _median(values: Floats, weights: Weights) -> Floats:
    """Median of the values [n], each repeated as often as its weight says, [m]; NaN where the weights are all 0."""
    result = np.full(len(weights), np.nan)
    order = np.argsort(values)
    ordered = values[order]
    for rows in blocks(weights):
        upto = np.cumsum(weights[rows][:, order], axis=1, dtype=np.int32)
        if upto.shape[1] == 0:
            break
        total = upto[:, -1]
        middle = [(upto <= (at // 2)[:, None]).sum(1) for at in (total - 1, total)]
        drawn = total > 0
        result[rows][drawn] = sum(ordered[place[drawn]] for place in middle) / 2
    return result

"""The per-sample table on which every table and figure rests: one row per (run, stage, split, sample).

Quantities that follow from a row are not stored: delta = w_clf - w_seg, seg_fail = has_mask and iou < 0.5,
clf_fail = not correct, 1 - conf. In storage ``dataset`` and ``method`` are folders rather than columns
(``btinet/partitions.py``): read ``results/predictions`` as a hive-partitioned dataset.
"""

from __future__ import annotations

import pyarrow as pa

from btinet.config import LEVELS

PER_LEVEL = pa.list_(pa.float32(), len(LEVELS))
"""In the order of LEVELS."""
PROBABILITIES = pa.list_(pa.float32())


def _fields(type_: pa.DataType, *names: str, nullable: bool = False) -> list[pa.Field]:
    return [pa.field(name, type_, nullable) for name in names]


PREDICTIONS = pa.schema(
    [
        *_fields(pa.string(), "dataset", "method", "run_id", "preset", "variant"),
        *_fields(pa.int32(), "seed"),
        *_fields(pa.string(), "split_id"),
        *_fields(pa.int8(), "stage"),  # 1 or 2
        *_fields(pa.string(), "split", "sample_id"),  # split: val or test
        *_fields(pa.string(), "group_id", nullable=True),
        *_fields(pa.int8(), "y_true"),
        *_fields(pa.bool_(), "has_mask"),
        *_fields(pa.int32(), "gt_area"),  # pixels at the prepared size
        # classification
        *_fields(pa.int8(), "y_pred", nullable=True),  # null for segmentation-only methods, as all of this block
        *_fields(PROBABILITIES, "probs", nullable=True),
        *_fields(pa.float32(), "conf", "entropy", nullable=True),  # nats
        *_fields(pa.bool_(), "correct", nullable=True),
        # segmentation at the prepared size, mask at p >= 0.5
        *_fields(pa.int32(), "tp", "fp", "fn", "pred_area"),
        *_fields(pa.float32(), "iou", "dice", "precision", "recall", "soft_iou"),  # 0 where 0/0
        *_fields(pa.float32(), "mask_conf", nullable=True),  # soft Dice with its own mask; null in earlier results
        *_fields(pa.bool_(), "empty_pred"),
        *_fields(pa.binary(), "mask_png", nullable=True),  # predicted mask, 1-bit PNG; test split of stage 2 only
        # gate signals (null for methods without them)
        *_fields(PER_LEVEL, "w_seg", "w_clf", "align", "seg_energy", "clf_energy", nullable=True),
        *_fields(PER_LEVEL, "tim_dclf_l1", "tim_dclf_l2", "tim_dseg_l1", "tim_dseg_l2", nullable=True),
        # Monte Carlo dropout (null when mc_passes is 0)
        *_fields(pa.int16(), "mc_T", nullable=True),
        *_fields(pa.string(), "mc_scope", nullable=True),
        *_fields(pa.float32(), "mc_seg_var", "mc_seg_entropy", "mc_seg_mi", "mc_seg_var_fg", nullable=True),
        *_fields(pa.float32(), "mc_iou", nullable=True),  # of the mean map thresholded at 0.5
        *_fields(pa.float32(), "mc_clf_entropy", "mc_clf_mi", "mc_clf_var", nullable=True),
        # with dropout in the classification head alone, whatever mc_scope is
        *_fields(pa.float32(), "mc_head_clf_entropy", "mc_head_clf_mi", "mc_head_clf_var", nullable=True),
        *_fields(PROBABILITIES, "mc_probs", nullable=True),
        *_fields(pa.int8(), "mc_pred", nullable=True),
        *_fields(pa.binary(), "mc_var_png", nullable=True),  # variance map (variance_png); where mask_png is
        *_fields(pa.float32(), "latency_ms", nullable=True),  # one forward pass of the batch / its size
    ]
)

IMAGES = pa.schema(
    [
        *_fields(pa.string(), "dataset", "prepared", "split_id", "sample_id"),
        *_fields(pa.int8(), "label"),
        *_fields(pa.string(), "class"),
        *_fields(pa.binary(), "image_jpeg"),  # at the prepared size
        *_fields(pa.binary(), "mask_png"),  # ground truth, 1-bit PNG
    ]
)
"""One row a test sample of a split: what all runs on that split are evaluated on, in ``results/images``."""

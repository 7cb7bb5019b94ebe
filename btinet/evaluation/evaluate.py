"""Trained stages of one run -> its file of ``results/predictions``, one row per (stage, split, sample)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from btinet.config import BoundRun
from btinet.datasets.prepared import PreparedDataset, open_prepared
from btinet.datasets.splits import Split, load_split
from btinet.evaluation.mc_dropout import McDropout, dropout_layers, head_dropout, mc_dropout
from btinet.evaluation.outputs import evaluation_inputs, evaluation_receipt_file, finished_evaluation, predictions_file
from btinet.evaluation.pictures import images_file, mask_png, variance_png, write_images
from btinet.evaluation.run_table import write_run
from btinet.evaluation.schema import PREDICTIONS
from btinet.losses import soft_iou
from btinet.metrics import entropy, foreground, mask_confidence, overlap
from btinet.models.method import Method
from btinet.models.place import for_inference, place
from btinet.partitions import write_partition
from btinet.progress import OnBatch, ProgressFile
from btinet.ranks import Ranks
from btinet.receipts import Receipt, environment, write_receipt
from btinet.storage import Storage
from btinet.training.data import SplitData
from btinet.training.outputs import run_folder
from btinet.training.stage import load_model, require_stage
from btinet.training.tasks import Batch

EVALUATED_SPLITS = ("val", "test")


def evaluate(
    bound: BoundRun, root: Storage, device: torch.device, on_batch: OnBatch = lambda done, total: None
) -> Receipt:
    """Evaluate every stage of a run on validation and test, or find that it is done.

    Args:
        bound: a run whose stages are finished.
        root: storage root.
        device: where to compute.
        on_batch: called after every batch with the number done and the total.
    """
    if (done := finished_evaluation(bound, root)) is not None:
        return done
    for stage in bound.run.stages:  # before any is evaluated
        require_stage(bound, stage, root)
    started = time.time()
    prepared = open_prepared(root, bound.run.dataset.name, bound.prepared)
    split = load_split(root, prepared, bound.run.dataset.split, bound.run.seed)
    size = bound.run.settings.train.val_batch_size
    data = {name: SplitData(prepared, split.rows(name), device) for name in EVALUATED_SPLITS}
    total = len(bound.run.stages) * sum(-(-len(rows) // size) for rows in data.values())
    progress_file = ProgressFile(run_folder(root, bound.run_id) / "evaluation-progress.json")
    tables = []
    for stage in bound.run.stages:
        model = load_model(bound, stage, root, len(prepared.manifest.classes))
        model = for_inference(place(model, device))
        for name in EVALUATED_SPLITS:
            for number, batch in enumerate(data[name].ordered(size, Ranks())):
                torch.manual_seed(_mc_seed(bound, stage, name, number))
                columns = _evaluate_batch(
                    model, batch, bound, with_pictures=stage == bound.run.stages[-1] and name == "test"
                )
                tables.append(_table(columns, bound, stage, split, name, prepared, batch))
                on_batch(len(tables), total)
                progress_file.write({"done": len(tables), "total": total}, len(tables) == total)
    table = pa.concat_tables(tables)
    file = predictions_file(root, bound)
    write_partition(file, table)
    images = images_file(root, bound)
    if not images.exists():  # other runs on the split have written the same
        write_images(images, prepared, split)
    headline = _headline(table, bound.run.stages[-1])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    row = write_run(bound, root, prepared.manifest.classes, headline, environment() | {"device": name})
    receipt = evaluation_receipt_file(root, bound.run_id)
    inputs, outputs, seconds = evaluation_inputs(bound, root), [file, images, row], time.time() - started
    return write_receipt(receipt, root, "evaluation", inputs, outputs, headline, seconds, name)


def _mc_seed(bound: BoundRun, stage: int, split: str, batch: int) -> int:
    sequence = np.random.SeedSequence([bound.run.seed, stage, EVALUATED_SPLITS.index(split), batch])
    return int(sequence.generate_state(1, np.uint64)[0])


@torch.no_grad()
def _evaluate_batch(model: Method, batch: Batch, bound: BoundRun, with_pictures: bool) -> dict[str, Any]:
    """The columns that follow from the model; tensors or lists of one value a sample."""
    settings = bound.run.settings.evaluation
    began = time.perf_counter()
    features = model.features(batch.images)
    output = model.output(features)
    predicted = foreground(output.seg_logits)
    pred_area = predicted.sum((1, 2, 3)).cpu()  # waits for the device, so that the time is the pass's
    latency = (time.perf_counter() - began) * 1000 / len(batch.labels)
    truth = batch.masks > 0
    p = output.seg_logits.sigmoid()
    pixels = overlap(predicted, truth)
    columns: dict[str, Any] = {
        "gt_area": truth.sum((1, 2, 3)),
        "has_mask": truth.flatten(1).any(1),
        "tp": pixels.tp,
        "fp": pixels.fp,
        "fn": pixels.fn,
        "pred_area": pred_area,
        "iou": pixels.iou,
        "dice": pixels.dice,
        "precision": pixels.precision,
        "recall": pixels.recall,
        "soft_iou": soft_iou(p, batch.masks),
        "mask_conf": mask_confidence(p),
        "empty_pred": pred_area == 0,
        "latency_ms": [latency] * len(batch.labels),
    }
    if output.clf_logits is not None:
        columns |= _classification_columns(output.clf_logits, batch.labels)
    if output.signals is not None:
        columns |= output.signals._asdict()
    if with_pictures:
        columns["mask_png"] = [mask_png(mask) for mask in predicted[:, 0].cpu().numpy()]
    if settings.mc_passes and dropout_layers(model, settings.mc_scope):
        mc = mc_dropout(model, features, batch.masks, settings.mc_passes, settings.mc_scope)
        columns |= _mc_columns(mc, with_pictures)
        columns |= {
            "mc_T": [settings.mc_passes] * len(batch.labels),
            "mc_scope": [settings.mc_scope] * len(batch.labels),
        }
        if (head := head_dropout(model, features, settings.mc_passes)) is not None:
            columns |= {f"mc_head_{name}": values for name, values in head._asdict().items()}
    return columns


def _classification_columns(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    probs = logits.softmax(1)
    conf, y_pred = probs.max(1)
    return {
        "probs": probs,
        "conf": conf,
        "y_pred": y_pred,
        "correct": y_pred == labels,
        "entropy": entropy(probs),
    }


def _mc_columns(mc: McDropout, with_pictures: bool) -> dict[str, Any]:
    """Null where dropout has no part: a segmentation without it is certain of nothing, not of everything."""
    columns: dict[str, Any] = {f"mc_{name}": values for name, values in mc._asdict().items()}
    maps = columns.pop("mc_seg_var_map")
    if not mc.seg_var.any():
        columns |= dict.fromkeys(("mc_seg_var", "mc_seg_entropy", "mc_seg_mi", "mc_seg_var_fg", "mc_iou"))
    elif with_pictures:
        columns["mc_var_png"] = [variance_png(map) for map in maps]
    return columns | {"mc_pred": None if mc.probs is None else mc.probs.argmax(1)}


def _table(
    columns: dict[str, Any],
    bound: BoundRun,
    stage: int,
    split: Split,
    name: str,
    prepared: PreparedDataset,
    batch: Batch,
) -> pa.Table:
    """A batch's rows in the schema's order and types; columns that the model does not give are null."""
    run, count = bound.run, len(batch.labels)
    constant = {
        "run_id": bound.run_id,
        "preset": run.preset,
        "dataset": run.dataset.name,
        "method": run.method,
        "variant": run.variant,
        "seed": run.seed,
        "split_id": split.id,
        "stage": stage,
        "split": name,
    }
    samples = prepared.samples.take(batch.rows)
    columns = (
        {field: [value] * count for field, value in constant.items()}
        | {field: samples[field] for field in ("sample_id", "group_id")}
        | {"y_true": batch.labels}
        | columns
    )
    return pa.table([_column(columns.get(field.name), field, count) for field in PREDICTIONS], schema=PREDICTIONS)


def _column(values: Any, field: pa.Field, count: int) -> pa.Array:
    if values is None:
        return pa.nulls(count, field.type)
    if isinstance(values, Tensor):
        values = values.tolist()
    return values.cast(field.type) if isinstance(values, pa.ChunkedArray) else pa.array(values, field.type)


def _headline(table: pa.Table, stage: int) -> dict[str, float | int | str | None]:
    """Test IoU over lesions and accuracy of the last stage, for receipts and ``dvc metrics``."""
    test = table.filter((pc.field("stage") == stage) & (pc.field("split") == "test"))
    lesions = test.filter(pc.field("has_mask"))
    return {
        "test_samples": len(test),
        "test_iou": pc.mean(lesions["iou"]).as_py(),
        "test_dice": pc.mean(lesions["dice"]).as_py(),
        "test_accuracy": pc.mean(test["correct"].cast(pa.float64())).as_py(),  # None where the method does not classify
    }

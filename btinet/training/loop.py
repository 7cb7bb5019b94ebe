"""The training loop: one for both stages, in one process or several, fresh or resumed.

Everything random follows from (seed, stage, epoch), and a checkpoint at the end of each epoch holds the rest.
So on a CPU a run that was killed and resumed ends with the same weights, to the bit, as one that was not.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from btinet.config import TrainSettings
from btinet.datasets.augment import augment
from btinet.errors import NonFiniteLossError
from btinet.progress import Progress, Row
from btinet.ranks import Ranks, synchronise_batchnorm, synchronise_dropout
from btinet.training.balancing import Balance
from btinet.training.checkpoint import Checkpoints, PackedBest, pack, pack_best
from btinet.training.data import SplitData
from btinet.training.statistics import refresh_statistics
from btinet.training.tasks import Batch, Task


class Trained(NamedTuple):
    """What :func:`fit` leaves."""

    best_epoch: int
    best_weights: dict[str, Tensor]
    """State of ``task.trained`` at the best epoch."""
    stopped: str
    """``early`` or ``budget``."""
    history: list[Row]


def fit(
    task: Task,
    train: SplitData,
    val: SplitData,
    settings: TrainSettings,
    seed: int,
    checkpoints: Checkpoints,
    on_step: Callable[[Progress], None],
    on_epoch: Callable[[list[Row]], None],
) -> Trained:
    """Train ``task`` until its budget or its patience ends, from its latest checkpoint if there is one.

    Args:
        task: what to optimise, on the device to use.
        train, val: data on the same device.
        settings: optimisation and augmentation.
        seed: the run's seed.
        checkpoints: where the state of each epoch goes.
        on_step: called on the first rank after every step.
        on_epoch: called on the first rank after every epoch with the history so far, once its checkpoint is written;
            in a thread of its own, while the next epoch trains.

    Raises:
        NonFiniteLossError: naming the samples of the batch.
    """
    ranks = Ranks()
    stage = settings.stage1 if task.stage == 1 else settings.stage2
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    balance = task.balance()
    groups: list[dict[str, Any]] = [{"params": parameters, "weight_decay": settings.weight_decay}]
    if balance.parameters():
        groups.append({"params": balance.parameters()})
    optimizer = torch.optim.Adam(groups, lr=stage.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode=task.mode,
        factor=settings.plateau_factor,
        patience=settings.plateau_patience - 1,  # torch waits for one epoch more than its patience
        threshold=0,
        min_lr=settings.min_learning_rate,
    )
    step_module = _data_parallel(task, ranks, averages_gradients=not balance.synchronises)

    history: list[Row] = []
    best: dict[str, Any] | None = None
    if (state := checkpoints.latest(train.labels.device)) is not None:
        task.trained.load_state_dict(state["trained"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        balance.restore(state["balance"])
        history, best = state["history"], state["best"]

    def patience_is_over() -> bool:
        return best is not None and len(history) - best["epoch"] >= stage.patience

    written: Future[None] = Future()
    written.set_result(None)
    with ThreadPoolExecutor(1, "checkpoint") as writer:  # whose end waits for what it writes
        while len(history) < stage.epochs and not patience_is_over():
            epoch = len(history) + 1
            started = time.perf_counter()
            _seed_everything(seed, task.stage, epoch)
            task_weights = {f"{name}_weight": weight for name, weight in balance.weights.items()}
            means = _train_epoch(
                task,
                step_module,
                train,
                optimizer,
                settings,
                balance,
                seed,
                epoch,
                stage.epochs,
                on_step,
                history,
            )
            if task.trained is task.model:  # else what has statistics is frozen, with its own
                refresh_statistics(task.model, train, settings.val_batch_size)
            summary = _validate(task, val, settings.val_batch_size, ranks)
            row: Row = {
                "stage": task.stage,
                "epoch": epoch,
                "learning_rate": optimizer.param_groups[0]["lr"],
                **task_weights,
                **means,
                **summary,
                "seconds": time.perf_counter() - started,
            }
            history.append(row)
            monitored = float(row[task.monitor])
            schedule.step(monitored)
            balance.end_epoch(
                *({name: float(row[f"{split}_{name}"]) for name in task.objectives} for split in ("train", "val"))
            )
            is_better = best is None or (monitored > best["value"] if task.mode == "max" else monitored < best["value"])
            previous = best
            packed = pack_best(epoch, task.trained.state_dict()) if ranks.is_first and is_better else None
            if is_better:
                best = {"epoch": epoch, "value": monitored, **(packed.entry if packed else {})}
            if ranks.is_first:
                assert best is not None
                state = {
                    "trained": task.trained.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "balance": balance.state(),
                    "history": history,
                    "best": best,
                }
                kept = {best["file"], *([previous["file"]] if previous else [])}
                written.result()  # one checkpoint is on its way at a time; what stopped the last one is raised here
                written = writer.submit(
                    _write_epoch, checkpoints, epoch, packed, pack(state), kept, partial(on_epoch, history.copy())
                )
            ranks.barrier()
        written.result()

    assert best is not None
    weights = checkpoints.load_best(best) if ranks.is_first else {}
    stopped = "early" if patience_is_over() and len(history) < stage.epochs else "budget"
    return Trained(best["epoch"], weights, stopped, history)


def _write_epoch(
    checkpoints: Checkpoints,
    epoch: int,
    best: PackedBest | None,
    state: bytes,
    kept: set[str],
    then: Callable[[], None],
) -> None:
    """What an epoch leaves in storage, in an order in which every moment between two files can be resumed from."""
    if best is not None:
        checkpoints.write_best(best)
    checkpoints.write(epoch, state)
    checkpoints.drop_best(kept)
    then()


def _train_epoch(
    task: Task,
    step_module: nn.Module,
    train: SplitData,
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    balance: Balance,
    seed: int,
    epoch: int,
    epochs: int,
    on_step: Callable[[Progress], None],
    history: list[Row],
) -> Row:
    """One pass over the training data; returns the mean of each loss, named ``train_*``.

    On a GPU steps are queued without waiting for it: a step's loss is looked at when the next one is queued.
    """
    ranks = Ranks()
    task.train()
    steps = train.steps(settings.batch_size)
    totals: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=train.device))
    started = time.perf_counter()

    def look_at(step: Step) -> None:
        loss = step.loss.wait() / ranks.size
        if not np.isfinite(loss):
            raise NonFiniteLossError(
                f"stage {task.stage}, epoch {epoch}, step {step.number}: the loss is {loss} "
                f"({', '.join(f'{name}: {value.item():.4g}' for name, value in step.losses.items())}) for the samples "
                f"{', '.join(ranks.gather(train.sample_ids(step.rows)))}; "
                "look at these images and masks, or lower the learning rate"
            )
        if ranks.is_first:
            steps_left = steps - step.number + steps * (epochs - epoch)
            seconds_left = (time.perf_counter() - started) / step.number * steps_left
            last = history[-1] if history else None
            on_step(Progress(task.stage, epoch, epochs, step.number, steps, loss, seconds_left, last))

    queued: deque[Step] = deque()
    for number, batch in enumerate(train.shuffled(settings.batch_size, [seed, task.stage, epoch], ranks), start=1):
        images, masks = augment(batch.images, batch.masks, batch.rows, seed, epoch, settings)
        batch = batch._replace(images=images, masks=masks)
        losses = take_step(step_module, batch, optimizer, balance, settings.clip_norm, ranks)
        for name, value in losses.items():
            totals[name] += value
        queued.append(Step(number, batch.rows, losses, ArrivingScalar(ranks.sum(losses["loss"]))))
        if len(queued) > (1 if train.device.type == "cuda" else 0):
            look_at(queued.popleft())
    for step in queued:
        look_at(step)
    names = sorted(totals)
    means = ranks.sum(torch.stack([totals[name] for name in names])) / (steps * ranks.size)
    return {f"train_{name}": value for name, value in zip(names, means.tolist(), strict=True)}


def take_step(
    step_module: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    balance: Balance,
    clip_norm: float,
    ranks: Ranks,
) -> dict[str, Tensor]:
    """Forward, backward, update; the losses, and what was minimised as ``loss``.

    Nothing in it waits for the device.
    """
    losses = step_module(batch, ranks)
    losses["loss"] = balance.total(losses)
    optimizer.zero_grad(set_to_none=True)
    parameters = optimizer.param_groups[0]["params"]
    balance.backward(losses, parameters, ranks)
    torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimizer.step()
    return {name: value.detach() for name, value in losses.items()}


class ArrivingScalar:
    """A number on its way from the device to the host."""

    def __init__(self, value: Tensor) -> None:
        self._value = value.to("cpu", non_blocking=value.is_cuda)
        self._arrival = torch.cuda.Event() if value.is_cuda else None
        if self._arrival is not None:
            self._arrival.record()

    def wait(self) -> float:
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._value.item()


class Step(NamedTuple):
    """A step that was queued."""

    number: int
    """In its epoch, from 1."""
    rows: NDArray[np.int64]
    losses: dict[str, Tensor]
    loss: ArrivingScalar
    """Summed over ranks."""


def _validate(task: Task, val: SplitData, batch_size: int, ranks: Ranks) -> Row:
    """Validation summary ``val_*``: losses, IoU over lesions, accuracy, mean gate weights per level.

    The batches are fixed, since the gate targets depend on their composition (notes B13).
    """
    task.eval()
    sums = _sum_up(task.validate(batch) for batch in val.ordered(batch_size, ranks))
    if not sums:  # more ranks than batches: this one has nothing to add, but takes part in the sum
        sums = {name: torch.zeros_like(value) for name, value in task.validate(val.batch(np.arange(1))).items()}
    names = sorted(sums)
    summed = dict(zip(names, ranks.sum(torch.stack([sums[name].double() for name in names])).tolist(), strict=True))
    lesions, samples = summed.pop("lesions"), summed.pop("samples")
    summary = {"val_iou": summed.pop("iou") / lesions}
    if "correct" in summed:
        summary["val_accuracy"] = summed.pop("correct") / samples
    return summary | {f"val_{name}": value / samples for name, value in summed.items()}


def _sum_up(batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for sums in batches:
        total = {name: value + total.get(name, 0) for name, value in sums.items()}
    return total


def _data_parallel(task: Task, ranks: Ranks, averages_gradients: bool) -> nn.Module:
    """The task with BatchNorm and dropout over the global batch, and gradients averaged over ranks."""
    if ranks.size == 1:
        return task
    synchronise_batchnorm(task)
    synchronise_dropout(task)
    if not averages_gradients:
        return task
    return DistributedDataParallel(task, broadcast_buffers=False)


def _seed_everything(seed: int, stage: int, epoch: int) -> None:
    """Dropout and stochastic depth draw from torch's global generator, which is the same on all ranks."""
    torch.manual_seed(int(np.random.SeedSequence([seed, stage, epoch, 0]).generate_state(1, np.uint64)[0]))

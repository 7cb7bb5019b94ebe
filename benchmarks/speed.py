"""How fast the model's work is on this machine: ratios, each in one run on the same work.

    python benchmarks/speed.py [WORK ...] [--precision bfloat16] [--device cpu]  # minutes on two cores; or `make bench`

Two sides take turns, so that other work on the machine slows down both; a ratio is the median over the rounds.
"Plain" is the same model with the same weights as a textbook writes it and torch has it by default: its own layers,
contiguous, eager, float32, Adam's default form, memory given back to the system. Ours is what training and evaluation
use, in ``model.precision``. Prints a table and writes it as CSV, named after precision, layout, torch version and
device, to build/bench.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from btinet.config import DatasetSettings, Experiment, TrainSettings
from btinet.datasets.augment import augment
from btinet.evaluation.mc_dropout import mc_dropout
from btinet.models.decoder import Upsample2x
from btinet.models.method import Method
from btinet.models.mscf import MSCF, DilatedDepthwise
from btinet.models.place import M_MMAP_MAX, M_TRIM_THRESHOLD, device_named, for_inference, keep_freed_memory, place
from btinet.models.registry import build
from btinet.ranks import Ranks
from btinet.training.checkpoint import pack, pack_best
from btinet.training.loop import take_step
from btinet.training.tasks import Batch, Stage1Task

SIZE, CLASSES, PASSES = 224, 3, 30
BUSI_STEPS = 545 // 8
"""Steps of an epoch of BUSI's training split."""
SHARED_STEPS, SHARED_SECONDS = {"cuda": 50, "cpu": 5}, 300
"""Of each training beside others, and how long the others wait for one."""
CORES = os.cpu_count() or 1
LAYOUT = torch.channels_last
M_MMAP_THRESHOLD = -3
OUT = Path("build/bench")

M = TypeVar("M", bound=Method)


class Figure(NamedTuple):
    work: str
    plain: float
    """Seconds of the side that is compared with; MB where ``unit`` is."""
    ours: float
    value: float
    unit: str
    """What ``value`` is."""
    mark: str


class PlainUpsample2x(Upsample2x):
    """As :class:`Upsample2x` was before it was timed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up: torch.Tensor = self.conv(x)[:, :, :-1, :-1]
        return up


class PlainMSCF(MSCF):
    """As the formula has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.scale_weights(x)
        mixed = torch.zeros_like(x)
        for index, branch in enumerate(self.branches):
            mixed = mixed + weights[:, index, None, None, None] * branch(x)
        fused: torch.Tensor = x + self.fuse(mixed)
        return fused


PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    Upsample2x: PlainUpsample2x,
    MSCF: PlainMSCF,
    DilatedDepthwise: nn.Conv2d,
}


def plainly(model: M) -> M:
    """The same model, changed to compute as a textbook writes it."""
    for module in model.modules():
        if type(module) in PLAIN:
            module.__class__ = PLAIN[type(module)]
    return model


class Bench:
    """The paper's model, and inputs of random pixels; weights do not matter to speed."""

    def __init__(self, precision: Literal["float32", "bfloat16"], rounds: int, device: torch.device) -> None:
        self.device = device
        self.precision: Literal["float32", "bfloat16"] = precision
        self.rounds = rounds
        self.settings = (
            Experiment(
                name="bench",
                datasets=(DatasetSettings(name="phantom"),),
                preset="paper",
                seeds=(42,),
                model={"pretrained": False},
            )
            .runs()[0]
            .settings
        )

    def plain(self) -> Method:
        return plainly(self._model("float32")).to(self.device)

    def ours(self, **changes: object) -> Method:
        return place(self._model(self.precision, **changes), self.device)

    def _model(self, precision: str, **changes: object) -> Method:
        torch.manual_seed(0)
        return build("btinet", self.settings.model.model_copy(update={"precision": precision, **changes}), CLASSES)

    def batch(self, size: int) -> Batch:
        """Random pixels."""
        generator = torch.Generator().manual_seed(0)
        masks = (torch.rand(size, 1, SIZE, SIZE, generator=generator) > 0.5).float().to(self.device)
        images = torch.rand(size, 3, SIZE, SIZE, generator=generator).to(self.device)
        return Batch(images, masks, (torch.arange(size) % CLASSES).to(self.device), np.arange(size))

    def seconds(self, work: Callable[[], object]) -> float:
        """Of the work until the device is done with it."""
        self.synchronize()
        started = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - started

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def step(self, model: Method, batch: Batch, fused: bool = True) -> Step:
        return Step(Stage1Task(model, self.settings.loss), self.settings.train, batch, fused)

    def turns(
        self, plain: Callable[[], object], ours: Callable[[], object], rounds: int | None = None
    ) -> tuple[float, float, float]:
        """Median seconds of either side, and the median of their ratios."""

        def one_round() -> tuple[float, float]:
            give_freed_memory_back()
            plainly = self.seconds(plain)
            keep_freed_memory()
            ours()  # has its memory again
            return plainly, self.seconds(ours)

        plain()
        pairs = [one_round() for _ in range(rounds or self.rounds)]
        medians = [statistics.median(pair[side] for pair in pairs) for side in (0, 1)]
        return medians[0], medians[1], statistics.median(one / other for one, other in pairs)

    def fastest(self, work: Callable[[], object]) -> float:
        """Seconds of one thing when nothing disturbs it."""
        return min(self.seconds(work) for _ in range(3 * self.rounds))

    def alone(self, work: Callable[[], object]) -> float:
        """Median seconds of one thing."""
        work()
        return statistics.median(self.seconds(work) for _ in range(self.rounds))


def training(bench: Bench) -> Iterator[Figure]:
    """A whole step: forward, losses, backward, clipping, Adam."""
    batch, mark = bench.batch(8), "5" if bench.device.type == "cuda" else "2.5"
    plain_step = bench.step(bench.plain(), batch, fused=False)
    ours_step = bench.step(bench.ours(), in_layout(batch))
    plain, ours, ratio = bench.turns(plain_step, ours_step)
    yield Figure("training step, batch 8", plain, ours, ratio, "times as fast as plain", mark)
    yield Figure("training step, batch 8", plain, ours, 8 / ours, "images/s", "5")


def inference(bench: Bench) -> Iterator[Figure]:
    """Mask, class and all signals."""
    model, own = bench.plain().eval(), for_inference(bench.ours().eval())
    for size in (8, 1):
        batch = bench.batch(size)
        plain, ours, ratio = bench.turns(no_grad(model, batch.images), no_grad(own, in_layout(batch).images))
        yield Figure(f"inference, batch {size}", plain, ours, ratio, "times as fast as plain", "3")
        yield Figure(f"inference, batch {size}", plain, ours, size / ours, "images/s", "34" if size == 8 else "")


def gates(bench: Bench) -> Iterator[Figure]:
    """What UPA and TIM cost of a pass."""
    images = in_layout(bench.batch(8)).images
    changes: list[dict[str, object]] = [{"upa": False, "tim": False}, {}]
    without, whole = (no_grad(for_inference(bench.ours(**change).eval()), images) for change in changes)
    pairs = [(bench.seconds(without), bench.seconds(whole)) for _ in range(1 + 3 * bench.rounds)][1:]
    plain, ours = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    ratio = statistics.median(one / other for one, other in pairs)
    yield Figure("pass without / with UPA and TIM", plain, ours, 100 * (1 - ratio), "% of the pass", "at most 8")


def mc(bench: Bench) -> Iterator[Figure]:
    """Monte Carlo dropout: features once, decoder PASSES times; against as many whole plain passes."""
    own, batch = for_inference(bench.ours().eval()), bench.batch(4)
    images = in_layout(batch).images

    @torch.no_grad()
    def ours() -> None:
        mc_dropout(own, own.features(images), batch.masks, PASSES, "all")

    one, other = no_grad(bench.plain().eval(), batch.images), no_grad(own, images)
    plain, own_seconds, ratio = bench.turns(lambda: [one() for _ in range(PASSES)], ours, rounds=1)
    yield Figure(f"{PASSES} passes of dropout, batch 4", plain, own_seconds, ratio, "times as fast as plain", "5")
    single = bench.alone(other)
    yield Figure(
        f"{PASSES} passes / the gates' single pass", own_seconds, single, own_seconds / single, "times its cost", ""
    )


def epoch(bench: Bench) -> Iterator[Figure]:
    """What of a training step is not the model: choosing and augmenting a batch; and what a checkpoint adds."""
    data, chosen = bench.batch(64), np.arange(8)
    train = bench.settings.train
    images, masks = (tensor.mul(255).byte() for tensor in (data.images, data.masks))

    def prepare() -> None:
        augment(images[chosen].float() / 255, masks[chosen].float() / 255, chosen, 42, 1, train)

    model = bench.ours()
    step = bench.step(model, in_layout(bench.batch(8)))
    aside, inside = bench.alone(prepare), bench.alone(step)
    share = 100 * aside / (aside + inside)
    yield Figure("batch and augmentation / step", aside, inside, share, "% of the epoch", "at most 3")

    def packed() -> None:
        pack_best(1, model.state_dict())
        pack({"trained": model.state_dict(), "optimizer": step.optimizer.state_dict()})

    waiting = bench.alone(packed)
    length = BUSI_STEPS * (aside + inside)
    yield Figure("checkpoint / epoch of BUSI", waiting, length, 100 * waiting / length, "% of the epoch", "at most 2")

    before = peak_mb(bench.device)
    for _ in range(5):
        step()
    after = peak_mb(bench.device)
    yield Figure("peak memory after 5 steps more", before, after, after - before, "MB grown", "0")


def sharing(bench: Bench) -> Iterator[Figure]:
    """Several trainings at once on one GPU, or on a CPU whose cores they share out, against one after another."""
    alone = together(bench, 1)
    for count in (2, 4, 8):
        if bench.device.type == "cpu" and count > CORES:
            return
        taken = together(bench, count)
        gain = count * alone / taken
        yield Figure(f"{count} trainings at once", count * alone, taken, gain, "times as fast as one by one", "")


def together(bench: Bench, count: int) -> float:
    """Seconds that so many processes take for SHARED_STEPS each."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count + 1, timeout=SHARED_SECONDS)
    processes = [
        context.Process(target=train_beside, args=(bench.precision, bench.device, CORES // count or 1, barrier))
        for _ in range(count)
    ]
    for process in processes:
        process.start()
    barrier.wait()  # until all have taken their first steps
    started = time.perf_counter()
    barrier.wait()
    taken = time.perf_counter() - started
    for process in processes:
        process.join()
    return taken


def train_beside(
    precision: Literal["float32", "bfloat16"], device: torch.device, threads: int, barrier: Barrier
) -> None:
    torch.set_num_threads(threads)
    bench = Bench(precision, 1, device)
    step = bench.step(bench.ours(), in_layout(bench.batch(8)))
    for _ in range(2):
        step()
    bench.synchronize()
    barrier.wait()
    for _ in range(SHARED_STEPS[device.type]):
        step()
    bench.synchronize()
    barrier.wait()


def bound(bench: Bench) -> Iterator[Figure]:
    """How near an inference pass comes to what this machine's rates allow, by kind of layer.

    A layer can take no less than its multiply-adds at the rate of the fastest large convolution or matrix product here,
    or its input, output and weights at the rate at which memory is copied, whichever is longer.
    """
    dtype = getattr(torch, bench.precision)
    made = {"device": bench.device, "dtype": dtype}
    square, kernel = torch.rand(2048, 2048, **made), torch.rand(256, 256, 3, 3, **made)
    maps = torch.rand(8, 256, 56, 56, **made).contiguous(memory_format=LAYOUT)
    product = 2 * 2048**3 / bench.fastest(lambda: square @ square)
    convolution = 2 * maps.numel() * 256 * 9 / bench.fastest(lambda: nn.functional.conv2d(maps, kernel, padding=1))
    large, target = torch.rand(2**26, device=bench.device), torch.empty(2**26, device=bench.device)
    rate, bandwidth = max(product, convolution), 2 * large.nbytes / bench.fastest(lambda: target.copy_(large))
    yield Figure(
        "arithmetic / copying", rate / 1e9, bandwidth / 1e9, rate / bandwidth, "FLOP a byte; GFLOP, GB a s", ""
    )

    model, images = for_inference(bench.ours().eval()), in_layout(bench.batch(8)).images
    least: dict[str, float] = defaultdict(float)
    taken: dict[str, float] = defaultdict(float)
    entered: list[float] = []

    def enter(layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        bench.synchronize()
        entered.append(time.perf_counter())

    def leave(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        bench.synchronize()
        now = time.perf_counter()
        weight = (layer.conv if isinstance(layer, Upsample2x) else layer).weight
        assert isinstance(weight, torch.Tensor)
        places = (inputs[0] if isinstance(layer, Upsample2x) else output)[:, 0].numel()
        numbers = inputs[0].numel() + output.numel() + weight.numel()
        least[kind(layer)] += max(2 * places * weight.numel() / rate, numbers * dtype.itemsize / bandwidth)
        taken[kind(layer)] += now - entered.pop()

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, Upsample2x)):
            layer.register_forward_pre_hook(enter)
            layer.register_forward_hook(leave)
    run = no_grad(model, images)
    run()
    least.clear()
    taken.clear()
    total = statistics.mean(bench.seconds(run) for _ in range(bench.rounds))
    for name in sorted(taken, key=taken.__getitem__, reverse=True):
        allowed, took = least[name] / bench.rounds, taken[name] / bench.rounds
        yield Figure(f"bound / {name}", allowed, took, 100 * allowed / took, "% of what the rates allow", "")
    rest = total - sum(taken.values()) / bench.rounds
    yield Figure("all else / inference, batch 8", rest, total, 100 * rest / total, "% of the pass", "")


def kind(layer: nn.Module) -> str:
    if isinstance(layer, Upsample2x):
        return "transposed convolutions"
    assert isinstance(layer, nn.Conv2d)
    if layer.groups > 1:
        return "depthwise convolutions"
    return f"{layer.kernel_size[0]}x{layer.kernel_size[1]} convolutions"


class Step:
    """One step of stage 1 on the same batch."""

    def __init__(self, task: Stage1Task, train: TrainSettings, batch: Batch, fused: bool) -> None:
        self.task, self.train, self.batch = task.train(), train, batch
        self.balance = task.balance()
        self.optimizer = torch.optim.Adam(
            task.parameters(), lr=1e-3, weight_decay=train.weight_decay, fused=fused or None
        )

    def __call__(self) -> None:
        take_step(self.task, self.batch, self.optimizer, self.balance, self.train.clip_norm, Ranks())


def in_layout(batch: Batch) -> Batch:
    return batch._replace(images=batch.images.contiguous(memory_format=LAYOUT))


def no_grad(model: Method, images: torch.Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> object:
        return model(images)

    return run


def give_freed_memory_back() -> None:
    """As glibc does by itself once it has seen large tensors."""
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 65_536)
    mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
    mallopt(M_TRIM_THRESHOLD, 64 * 2**20)


def peak_mb(device: torch.device) -> float:
    """That this process has held, on the GPU if it is one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# sharing first, while this process holds no memory that the others need
WORKS = {function.__name__: function for function in (sharing, training, inference, bound, gates, mc, epoch)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(WORKS)}; all by default")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", help="cpu, cuda or cuda:N; a GPU if there is one")
    given = parser.parse_args()
    if unknown := set(given.works) - WORKS.keys():
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(WORKS)}")
    torch.set_num_threads(CORES)
    bench = Bench(given.precision, given.rounds, device_named(given.device))
    figures = [figure for name in given.works or WORKS for figure in WORKS[name](bench)]

    is_gpu = bench.device.type == "cuda"
    device = torch.cuda.get_device_name(bench.device).replace(" ", "-") if is_gpu else f"cpu{CORES}"
    title = f"{given.precision}-channels_last-torch{torch.__version__.split('+')[0]}-{device}"
    table = Table(*Figure._fields, title=f"{title}, {platform.processor() or platform.machine()}")
    for figure in figures:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else cell for cell in figure))
    Console(width=120).print(table)
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / f"speed-{title}.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(Figure._fields)
        writer.writerows(figures)


if __name__ == "__main__":
    main()

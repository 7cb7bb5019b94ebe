"""How fast datasets are prepared and read back, against Pillow and against training, on the same cores.

    python benchmarks/prepare.py --data-root DIR

DIR holds BUSI, HAM10000 and BRISC in their official layouts. The two sides of a ratio take turns, and each ratio is the
median over the rounds, so that other work on the machine slows down both. Marks: preparation at 0.8 of Pillow's rate
of decoding, converting and resizing the same files with the same threads; reading an epoch at 20 times the speed of
training.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from btinet.config import DatasetSettings, Experiment
from btinet.datasets.examine import map_in_order
from btinet.datasets.prepare import _batches, _decode, choose_subset, prepare
from btinet.datasets.prepared import PreparedDataset, open_prepared
from btinet.datasets.registry import open_reader
from btinet.datasets.sample import Sample
from btinet.datasets.splits import load_split
from btinet.models.registry import build
from btinet.ranks import Ranks
from btinet.storage import Storage
from btinet.training.data import SplitData
from btinet.training.tasks import Stage1Task

SIZE = 224
BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=200, help="of each dataset that is prepared")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of training, about 8 s each on two cores")
    given = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    print(f"{os.cpu_count()} cores; seconds a sample: wall, CPU")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["BTINET_CACHE"] = str(folder / "cache")
        busi = DatasetSettings(name="busi", root=str(given.data_root), max_samples=given.samples)
        ham = busi.model_copy(update={"name": "ham10000"})
        compare_preparing("BUSI as given", busi, folder, given.rounds)
        compare_preparing("BUSI, PNG 600x500", resized(busi, (600, 500), folder / "busi"), folder, given.rounds)
        compare_preparing("HAM10000, JPEG 600x450", resized(ham, (600, 450), folder / "ham"), folder, given.rounds)
        brisc = busi.model_copy(update={"name": "brisc2025"})
        compare_preparing("BRISC, JPEG 512x512", resized(brisc, (512, 512), folder / "brisc"), folder, given.rounds)
        compare_reading(busi.model_copy(update={"max_samples": None}), folder, given.rounds, given.steps)


def resized(settings: DatasetSettings, size: tuple[int, int], target: Path) -> DatasetSettings:
    """The dataset's subset in another size, in the same layout below ``target``."""
    root = Path(str(settings.root))
    for sample in choose_subset(open_reader(settings).samples(), settings.max_samples):
        for file, filtered in zip(sample.files, (BILINEAR, *[NEAREST] * 4), strict=False):
            copy = target / Path(file.path).relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            Image.open(file.path).resize(size, filtered).save(copy, quality=95)
    if (table := root / "HAM10000_metadata.csv").exists() and settings.name == "ham10000":
        kept = {file.stem for file in target.rglob("*.jpg")}
        with table.open() as source, (target / table.name).open("w") as stream:
            rows = csv.DictReader(source)
            writer = csv.DictWriter(stream, rows.fieldnames or ())
            writer.writeheader()
            writer.writerows(row for row in rows if row["image_id"] in kept)
    return settings.model_copy(update={"root": str(target)})


def compare_preparing(title: str, settings: DatasetSettings, folder: Path, rounds: int) -> None:
    reader = open_reader(settings)
    samples = choose_subset(reader.samples(), settings.max_samples)
    sides: dict[str, Callable[[], object]] = {
        "Pillow": lambda: list(map_in_order(_pillow, samples)),
        "decode": lambda: sum(1 for _ in map_in_order(lambda batch: _decode(reader, batch, SIZE), _batches(samples))),
        "prepare": lambda: prepare(settings, SIZE, Storage(str(folder / "store"))),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            taken[name].append(seconds(work))
        shutil.rmtree(folder / "store")
    for name, times in taken.items():
        wall, cpu = (statistics.median(time[clock] for time in times) / len(samples) for clock in (0, 1))
        ratios = [
            statistics.median(pillow[clock] / own[clock] for pillow, own in zip(taken["Pillow"], times, strict=True))
            for clock in (0, 1)
        ]
        print(f"{title:24} {name:8} {wall:.5f} {cpu:.5f}   rate / Pillow's: {ratios[0]:.2f} {ratios[1]:.2f}")


def _pillow(sample: Sample) -> None:
    image, *masks = sample.files
    Image.open(image.path).convert("RGB").resize((SIZE, SIZE), BILINEAR)
    for mask in masks:
        Image.open(mask.path).convert("L").resize((SIZE, SIZE), NEAREST)


def compare_reading(settings: DatasetSettings, folder: Path, rounds: int, steps: int) -> None:
    storage = Storage(str(folder / "store"))
    prepared = open_prepared(storage, settings.name, prepare(settings, SIZE, storage).manifest.hash)
    run = Experiment(
        name="bench", datasets=(settings,), preset="paper", seeds=(42,), model={"pretrained": False}
    ).runs()[0]
    rows = load_split(storage, prepared, "paper", 42).rows("train")
    size = run.settings.train.batch_size
    task = Stage1Task(build("btinet", run.settings.model, len(prepared.manifest.classes)), run.settings.loss)
    balance, optimizer = task.balance(), torch.optim.Adam(task.parameters())
    data = SplitData(prepared, rows, torch.device("cpu"))
    batches = data.shuffled(size, [0], Ranks())

    def train() -> None:
        loss = balance.total(task(next(batches), Ranks()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    train()  # the first step is slower
    ratios = []
    for _ in range(steps):
        reading = statistics.median(seconds(lambda: read(prepared, data))[0] for _ in range(rounds)) / len(rows)
        training = seconds(train)[0] / size
        ratios.append(training / reading)
        print(f"reading an epoch: {1 / reading:.0f} images/s, training: {1 / training:.2f}, ratio {ratios[-1]:.0f}")
    print(f"reading / training: {statistics.median(ratios):.0f}")


def read(prepared: PreparedDataset, data: SplitData) -> None:
    """An epoch from the files, as where a split is too large to be held in memory, shuffled."""
    for batch in SplitData(prepared, data.rows, data.device).shuffled(8, [1], Ranks()):
        batch.images.sum()


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()

"""How fast `btinet predict` is, and whether its memory grows with the number of images.

    python benchmarks/predict.py --run RUN [--storage URL] [--count 5000]

COUNT images (200 phantoms of 256 x 256, named again and again) go through what the command
does: decode, predict, mask, overlay, tables. Resident memory is read at every tenth; the first covers the warming up.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from PIL import Image

from btinet.calibration.reliability import certify
from btinet.datasets.phantom import draw
from btinet.inference.images import find_images
from btinet.inference.package import open_package
from btinet.inference.predict import Options, predict_rows, write_tables
from btinet.storage import Storage

DRAWN = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--storage", default="results")
    parser.add_argument("--count", type=int, default=5000)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    package = open_package(given.run, Storage(given.storage), device)
    options = Options(certify(package.calibrated.calibration, 0.1, 0.9, 0.05))
    process = psutil.Process()
    with TemporaryDirectory() as scratch:
        for number in range(DRAWN):
            Image.fromarray(draw(number)[0]).save(Path(scratch) / f"{number}.png")
        sources = find_images([f"{scratch}/{number % DRAWN}.png" for number in range(given.count)])
        started = time.monotonic()
        rows = predict_rows(package, sources, Storage(f"{scratch}/out"), device, options)
        for done, _ in enumerate(write_tables(rows, Storage(f"{scratch}/out")), start=1):
            if done % (given.count // 10) == 0:
                seconds = time.monotonic() - started
                memory = process.memory_info().rss / 2**20
                print(f"{done:>7,} images  {done / seconds:6.1f} images/s  {memory:7.0f} MiB", flush=True)


if __name__ == "__main__":
    main()

"""Load on a real `btinet serve`: latency, throughput, refusals, and whether its memory grows.

    python benchmarks/serve.py --run RUN [--storage URL] [--clients 1 4 16] [--seconds 60]

For each number of clients, for SECONDS: every client sends an image, waits for the answer, and sends the next; told 429
it waits as long as Retry-After says and sends the same image again. Images are phantoms of 256 to 1,024 pixels a side,
as PNG and JPEG; every other request asks for the preview, too. Clients and server share this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import psutil
from PIL import Image

from btinet.datasets.phantom import draw

FORMATS = ("PNG", "JPEG")
SIZES = (256, 400, 640, 1024)
DRAWN = 24
SAMPLES = 10
"""How often memory is read while one number of clients is at work."""


class Load(NamedTuple):
    """What clients met."""

    seconds: list[float]
    """Of each request that was answered with a prediction."""
    waited: list[float]
    """Until each prediction, refusals and the waits that they ask for included."""
    refused: int
    """429."""
    others: list[str]
    """Answers other than a prediction and 429, and requests without any: there should be none."""
    memory: list[float]
    """Resident memory of the server in MiB, at equal intervals."""


def images() -> list[tuple[bytes, str]]:
    """Files, each with its content type."""
    made = []
    for number in range(DRAWN):
        size, kind = SIZES[number % len(SIZES)], FORMATS[number // len(SIZES) % len(FORMATS)]
        stream = io.BytesIO()
        Image.fromarray(draw(number)[0]).resize((size, size)).save(stream, kind)
        made.append((stream.getvalue(), f"image/{kind.lower()}"))
    return made


async def load(
    url: str, server: psutil.Process, files: Sequence[tuple[bytes, str]], clients: int, seconds: float
) -> Load:
    """Clients at work for some time."""
    found = Load([], [], 0, [], [])
    refused = 0
    end = time.monotonic() + seconds

    async def work(number: int) -> None:
        nonlocal refused
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            while time.monotonic() < end:
                content, kind = files[number % len(files)]
                parameters = {"preview": number % 2 == 0}
                number += 1
                begun = time.monotonic()
                while True:
                    sent = time.monotonic()
                    try:
                        answer = await client.post(
                            "/v1/predict", content=content, headers={"Content-Type": kind}, params=parameters
                        )
                    except httpx.HTTPError as error:
                        found.others.append(repr(error))
                        break
                    if answer.status_code == 429:
                        refused += 1
                        await asyncio.sleep(int(answer.headers["Retry-After"]))
                        continue
                    if answer.status_code == 200:
                        found.seconds.append(time.monotonic() - sent)
                        found.waited.append(time.monotonic() - begun)
                    else:
                        found.others.append(f"{answer.status_code} {answer.text}")
                    break

    async def watch() -> None:
        for _ in range(SAMPLES):
            await asyncio.sleep(seconds / SAMPLES)
            found.memory.append(server.memory_info().rss / 2**20)

    await asyncio.gather(watch(), *(work(7 * number) for number in range(clients)))
    return found._replace(refused=refused)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--storage", default="results")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    files = images()
    command = [str(Path(sys.executable).with_name("btinet")), "serve", "--run", given.run, "--storage", given.storage]
    with subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = (re.match(r"http://\S+", line) for line in process.stderr)
        url = next(found[0] for found in said if found)
        server = psutil.Process(process.pid)
        print(f"{server.memory_info().rss / 2**20:.0f} MiB before the first request")
        for clients in given.clients:
            started = time.monotonic()
            found = asyncio.run(load(url, server, files, clients, given.seconds))
            _show(clients, found, time.monotonic() - started)
        process.send_signal(signal.SIGINT)


def _show(clients: int, found: Load, seconds: float) -> None:
    print(
        f"{clients:>3} clients  {len(found.seconds):>5} predictions  {len(found.seconds) / seconds:5.1f} a second  "
        f"latency p50 {_percentile(found.seconds, 50)} p99 {_percentile(found.seconds, 99)}  "
        f"with waits p50 {_percentile(found.waited, 50)} p99 {_percentile(found.waited, 99)}  "
        f"{found.refused} times 429  {len(found.others)} errors\n"
        f"     memory, MiB: {' '.join(f'{memory:.0f}' for memory in found.memory)}",
        flush=True,
    )
    for other in set(found.others):
        print(f"     {other}")


def _percentile(seconds: list[float], share: float) -> str:
    return f"{1000 * np.percentile(seconds, share):.0f} ms"


if __name__ == "__main__":
    main()

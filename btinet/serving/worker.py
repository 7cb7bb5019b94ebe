"""The one thread that predicts, and the few requests that may wait for it.

The event loop only moves bytes, so it stays responsive while the model computes; and because a place is held from a
request's first byte until its work is done, memory is bounded by the places times the largest body.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from PIL import Image

from btinet.calibration.reliability import Rule
from btinet.inference.images import prepare_image
from btinet.inference.package import Package
from btinet.inference.predict import encoded
from btinet.inference.predictor import Predictor
from btinet.serving.answer import Answer, answer
from btinet.serving.limits import Limits, Refused
from btinet.serving.upload import decode_upload

MEMORY = 0.9
"""How much the mean duration keeps of what was, at each request."""


class Worker:
    """Predicts one upload after the other. Its methods but for :meth:`work` belong to the event loop."""

    def __init__(self, package: Package, rule: Rule, device: torch.device, limits: Limits) -> None:
        self.package = package
        self.rule = rule
        self.limits = limits
        self.taken = 0
        """Places that requests hold."""
        self.seconds = 1.0
        """A request's work takes, on average."""
        self._predictor = Predictor(package.model, package.info.classes, device)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="predict")

    @property
    def is_full(self) -> bool:
        return self.taken > self.limits.waiting

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place, for the duration of the block.

        Raises:
            Refused: 429, all are taken.
        """
        if self.is_full:
            detail = f"{self.taken} requests are being worked on or wait: try again later"
            raise Refused(429, detail, retry_after=self.taken * self.seconds)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def predict(self, content: bytes, with_preview: bool, place: ExitStack) -> Answer:
        """Work on an upload in the thread; ``place`` is given back when that has ended, even if nobody waits any more.

        Raises:
            Refused: see :func:`btinet.serving.upload.decode_upload`.
        """
        loop = asyncio.get_running_loop()
        future = self._pool.submit(self.work, content, with_preview)
        give_back = place.pop_all().close
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(give_back))
        return await asyncio.wrap_future(future)

    def work(self, content: bytes, with_preview: bool) -> Answer:
        """Decode and predict an upload."""
        started = time.monotonic()
        prepared, preview = prepare_image(decode_upload(content, self.limits.max_pixels), self.package.info.image_size)
        (prediction,) = self._predictor.predict([prepared])
        found = answer(self.package, self.rule, prediction, (prepared.width, prepared.height))
        if with_preview:
            found.preview = base64.b64encode(encoded(Image.fromarray(preview), "JPEG")).decode()
        self.seconds = MEMORY * self.seconds + (1 - MEMORY) * (time.monotonic() - started)
        return found

    def warm_up(self) -> None:
        """Predict a black image, so that nobody waits for what is done only the first time."""
        size = self.package.info.image_size
        prepared, _ = prepare_image(np.zeros((size, size, 3), np.uint8), size)
        self._predictor.predict([prepared])

    def close(self) -> None:
        """End the thread, with what it is working on."""
        self._pool.shutdown(cancel_futures=True)

"""Live figures of a training for Prometheus, through Ray's metrics endpoint on every node."""

from __future__ import annotations

import time

from ray.util.metrics import Gauge

from btinet.config import Run
from btinet.progress import Progress

TAGS = ("run", "stage")


class TrainingMetrics:
    """Gauges ``ray_btinet_*``, tagged by run and stage; updated after every step."""

    def __init__(self, run: Run) -> None:
        self.key = run.key
        self.batch_size = run.settings.train.batch_size
        self.epoch = Gauge("btinet_epoch", "Epoch that is being trained, from 1.", TAGS)
        self.loss = Gauge("btinet_loss", "Training loss of the last step.", TAGS)
        self.val_iou = Gauge("btinet_val_iou", "Validation IoU over lesions at the end of the last epoch.", TAGS)
        self.pace = Gauge("btinet_samples_per_second", "Training samples a second, over the last step.", TAGS)
        self.last: float | None = None

    def update(self, progress: Progress) -> None:
        """Called on the first worker after every step."""
        tags = {"run": self.key, "stage": str(progress.stage)}
        self.epoch.set(progress.epoch, tags)
        self.loss.set(progress.loss, tags)
        if progress.last is not None:
            self.val_iou.set(float(progress.last["val_iou"]), tags)
        now = time.perf_counter()
        if self.last is not None:
            self.pace.set(self.batch_size / (now - self.last), tags)
        self.last = None if progress.step == progress.steps else now  # what follows is validation

"""What a server counts, for Prometheus; each application has a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from btinet.serving.worker import Worker

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one application."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, worker: Worker) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # resident memory, CPU seconds, open files
        self.requests = Counter("btinet_requests", "Answered requests", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "btinet_predict_seconds",
            "From the request for a prediction to its answer, where that is a prediction",
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.predictions = Counter(
            "btinet_predictions", "Predictions by whether they may be relied on", ["reliable"], registry=self.registry
        )
        places = Gauge("btinet_places_taken", "Requests that are worked on or wait", registry=self.registry)
        places.set_function(lambda: worker.taken)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

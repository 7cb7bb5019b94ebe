"""Prediction on the Ray cluster that this process is connected to: the images in shards, the rows in their order.

The work itself is :func:`btinet.inference.predict.predict_rows`, unchanged: shards are whole batches.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterator, Sequence

from btinet.cluster.session import models_on_cluster  # isort: skip  (sets what Ray reads when it is imported)
import ray
from ray.exceptions import RayError, RayTaskError

from btinet.cluster.worker import predict_worker
from btinet.datasets.files import shown
from btinet.errors import InputError
from btinet.inference.images import BadImage, Source
from btinet.inference.package import Package
from btinet.inference.predict import Options, Row
from btinet.storage import Storage

BATCHES = 16
"""Most batches of a shard."""
SHARDS_EACH = 4
"""Of few images each worker has at least so many shards, so that none waits long for another."""
AHEAD = 2
"""Shards a worker that are submitted and not yet taken; bounds what is held in memory."""
RETRIES = 3
"""How often a shard is done again because its process or node died."""


def predict_on_cluster(
    package: Package, sources: Sequence[Source], target: Storage, options: Options
) -> Iterator[Row | BadImage]:
    """See :func:`btinet.inference.predict.predict_rows`; on a GPU each where the cluster has any, else on a CPU each.

    Masks and overlays are written where they are made; rows come back. Whatever runs is cancelled when the session
    with Ray ends.

    Raises:
        InputError: a node does not see the images or ``target``, or a shard's process died more often than RETRIES.
    """
    models = models_on_cluster()
    workers = max(1, models.places)
    task = ray.remote(predict_worker).options(**models.options, max_retries=RETRIES, name="predict")
    shared = ray.put(package)
    probe = target / f".probe-{uuid.uuid4().hex}"
    probe.write_bytes(b"btinet")
    pending: deque[ray.ObjectRef[list[Row | BadImage]]] = deque()
    try:
        for start, size in _shards(len(sources), options.batch_size, workers):
            shard = list(sources[start : start + size])
            pending.append(task.remote([shared], shard, target, options, start // options.batch_size, probe))
            if len(pending) == AHEAD * workers:
                yield from _taken(pending.popleft())
        while pending:
            yield from _taken(pending.popleft())
    finally:
        probe.remove()


def _shards(count: int, batch_size: int, workers: int) -> Iterator[tuple[int, int]]:
    """First image and size of each shard, in whole batches."""
    batches = -(-count // batch_size)
    size = batch_size * min(BATCHES, max(1, batches // (SHARDS_EACH * workers)))
    for start in range(0, count, size):
        yield start, size


def _taken(reference: ray.ObjectRef[list[Row | BadImage]]) -> Iterator[Row | BadImage]:
    try:
        rows = ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from error
        raise
    except RayError as error:
        raise InputError(
            f"a shard of images was lost {RETRIES + 1} times ({type(error).__name__}): perhaps for want of memory "
            "(--batch-size), see Ray's dashboard; or predict with --in-process"
        ) from error
    for row in rows:
        if isinstance(row, BadImage) and row.reason.startswith("no such file") and row.source.file.exists():
            raise InputError(
                f"{shown(row.source.file)}: is here and not on the cluster's nodes: put the images on a disk that all "
                "share or into object storage (s3://), or predict with --in-process"
            )
        yield row

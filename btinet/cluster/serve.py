"""The application of `btinet serve` on the Ray cluster that this process is connected to, in several processes.

Ray Serve's proxy on the cluster's head listens, and passes each request on to one of the replicas. Each replica is
:func:`btinet.serving.app.make_app` as it is: limits, refusals and answers are its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from btinet.cluster.session import models_on_cluster  # isort: skip  (sets what Ray reads when it is imported)
import ray
from ray import serve
from ray.exceptions import RayTaskError

from btinet.errors import InputError
from btinet.storage import Storage

if TYPE_CHECKING:
    from fastapi import FastAPI

    from btinet.serving.limits import Limits

APPLICATION = "btinet"
REQUESTS = 256
"""That a replica holds at a time. Those beyond its own limits it answers 429 at once; so the page, health and metrics
are answered while predictions wait."""
ATTEMPTS = 3
"""How often replicas may fail to start."""


class Served(NamedTuple):
    """What the replicas serve: each reads it from storage."""

    url: str
    """Of the package, or of the run's folder."""
    root: dict[str, Any]
    """Reference of the storage that it is opened with."""
    max_risk: float
    confidence: float
    false_alarms: float


@serve.ingress()
class Replica:
    """One process that predicts."""

    def __init__(self, served: Served, limits: Limits, hosts: Sequence[str]) -> None:
        import torch

        from btinet.calibration.reliability import certify
        from btinet.inference.package import open_package
        from btinet.serving.app import make_app

        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        package = open_package(served.url, Storage(**served.root), device)
        rule = certify(package.calibrated.calibration, served.max_risk, served.confidence, served.false_alarms)
        self.application = make_app(package, rule, device, limits, hosts)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self.application


@contextmanager
def serving_on_cluster(
    served: Served, limits: Limits, hosts: Sequence[str], host: str, port: int, replicas: int
) -> Iterator[None]:
    """Ray Serve with this one application, for the duration of the block.

    Args:
        host: address of the cluster's head to listen on.
        replicas: processes that predict, on a GPU each where the cluster has any, else on a CPU each.

    Raises:
        InputError: Ray Serve already runs there, the cluster is too small, nothing can listen at the address, or the
            replicas cannot read the package.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    models = models_on_cluster()
    if replicas > models.places:
        raise InputError(
            f"--replicas {replicas}: the cluster has {models.places} {models.kind}(s), and each replica needs one"
        )
    if serve.status().proxies:
        raise InputError(
            "Ray Serve already runs on this cluster: `serve status` says what for, `serve shutdown` ends it; or serve "
            "from this process with --in-process"
        )
    deployment = serve.deployment(
        name="replica",
        num_replicas=replicas,
        ray_actor_options=models.options,
        max_ongoing_requests=REQUESTS,
        max_queued_requests=REQUESTS,
        max_constructor_retry_count=ATTEMPTS,
        logging_config={"enable_access_log": False},
    )(Replica)
    try:
        _listen(host, port)
        _deploy(deployment.bind(served, limits, hosts))
        yield
    finally:
        serve.shutdown()


def _listen(host: str, port: int) -> None:
    try:
        serve.start(http_options={"host": host, "port": port}, proxy_location="HeadOnly")
    except RayTaskError as error:
        raise InputError(
            f"--host {host} --port {port}: {_last_line(str(error))} Name another port, or an address of the cluster's "
            "head"
        ) from error


def _deploy(application: serve.Application) -> None:
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:  # it says that it failed, and not why
        reasons = serve.status().applications[APPLICATION].deployments["replica"].message
        raise InputError(
            f"no replica started: {_last_line(reasons)}: the cluster's nodes must reach RUN and its storage under the "
            "same names; or serve from this process with --in-process"
        ) from error


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "Ray does not say why"

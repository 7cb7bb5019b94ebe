"""Connecting this process to Ray: to the cluster that RAY_ADDRESS names, or to an embedded one that ends with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from btinet.cluster.package import package_to_send
from btinet.errors import InputError

# Train's runs appear in the dashboard only where this is set before Ray is imported
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
# jobs without a GPU leave CUDA_VISIBLE_DEVICES alone: Ray's coming default, set so that it does not warn about it
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
import ray


class Session(NamedTuple):
    """A live connection to Ray."""

    dashboard_url: str | None


class Models(NamedTuple):
    """What processes that hold a model each ask of the cluster: a GPU where it has any, else a CPU."""

    kind: str
    """GPU or CPU."""
    places: int
    """How many of them the cluster holds."""
    options: dict[str, int]
    """Ray's, for one."""


def models_on_cluster() -> Models:
    """Of the cluster that this process is connected to."""
    total = ray.cluster_resources()
    kind = "GPU" if total.get("GPU") else "CPU"
    return Models(kind, int(total.get(kind, 0)), {"num_cpus": 1, "num_gpus": int(kind == "GPU")})


@contextmanager
def ray_session() -> Iterator[Session]:
    """Connect to Ray for the duration of the block.

    To a running cluster goes this package's source and nothing else; its workers need the dependencies installed
    and read data from storage. An embedded cluster listens on localhost and stops at the end of the block.

    Raises:
        InputError: RAY_ADDRESS names no cluster that this process can join.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and "://" in address and not address.startswith("ray://"):
        raise InputError(
            f"RAY_ADDRESS={address}: the flow sends whole runs there as jobs; a single step joins a cluster from "
            "one of its nodes, with RAY_ADDRESS=HOST:6379, or runs with --in-process"
        )
    with ExitStack() as stack:
        if not address:  # its one machine is not taken away, and the process that would look for that costs a second
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        sent = [str(stack.enter_context(package_to_send()).folder)] if address else []
        try:
            context = ray.init(
                address=address or "local",
                include_dashboard=None if address else True,
                dashboard_host="127.0.0.1",
                runtime_env={"py_modules": sent} if sent else None,
                logging_level=logging.WARNING,
                log_to_driver=False,  # progress comes through storage; workers' logs are in the dashboard
            )
        except (ConnectionError, RuntimeError) as error:
            if not address:
                raise
            raise InputError(
                f"RAY_ADDRESS={address}: cannot connect ({error}); check that the cluster is up (`ray status`), or "
                "unset RAY_ADDRESS to use this machine"
            ) from error
        try:
            yield Session(f"http://{context.dashboard_url}" if context.dashboard_url else None)
        finally:
            ray.shutdown()

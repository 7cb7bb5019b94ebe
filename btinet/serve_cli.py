"""``btinet serve``: a trained run as a web page and a JSON endpoint."""

from __future__ import annotations

import ipaddress
import os
import re
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from btinet.console import bar, console
from btinet.errors import InputError
from btinet.options import Confidence, Device, Endpoint, FalseAlarms, MaxRisk, RunReference, RunStorage
from btinet.storage import Storage

if TYPE_CHECKING:
    import torch

    from btinet.calibration.reliability import Rule
    from btinet.cluster.serve import Served
    from btinet.inference.package import Package
    from btinet.serving.limits import Limits

GRACE_SECONDS = 5
"""How long requests that are being answered may take when the server is told to stop."""
CONNECTIONS = 256
"""At a time; one more is answered 503."""
LIMITS = "Limits"
CLUSTER = "On a cluster"


def serve(
    run: RunReference,
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than loopback lets others in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    max_risk: MaxRisk = 0.1,
    confidence: Confidence = 0.9,
    false_alarms: FalseAlarms = 0.05,
    max_megabytes: Annotated[
        float, typer.Option(min=0.001, help="Largest upload, in MB.", rich_help_panel=LIMITS)
    ] = 20,
    max_megapixels: Annotated[
        float, typer.Option(min=0.001, help="Largest image, in millions of pixels.", rich_help_panel=LIMITS)
    ] = 25,
    timeout: Annotated[
        float,
        typer.Option(min=0.001, help="Seconds a request may take, with upload and wait.", rich_help_panel=LIMITS),
    ] = 30,
    queue: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; more are answered 429.", rich_help_panel=LIMITS)
    ] = 8,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="One more name that requests may address this server by (their Host header); repeat it for several, "
            "*.example.com allows all below one, * any.",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    replicas: Annotated[
        int,
        typer.Option(min=1, help="Of the model, each on a GPU or a CPU of its own.", rich_help_panel=CLUSTER),
    ] = 1,
    in_process: Annotated[
        bool,
        typer.Option(
            "--in-process",
            help="Serve from this process even if RAY_ADDRESS names a cluster.",
            rich_help_panel=CLUSTER,
        ),
    ] = False,
    storage: RunStorage = "results",
    endpoint: Endpoint = None,
    device: Device = None,
) -> None:
    """A web page to try a trained run on images, and a JSON endpoint; for this machine alone unless told otherwise.

    The page shows mask, class, gate signals and whether to rely on them: what `btinet predict` says. The endpoint is
    POST /v1/predict, described at /openapi.json; docs/serve.md has examples. Ctrl-C stops it.

    Where RAY_ADDRESS names a cluster, Ray Serve does the same there, on the head's HOST and PORT. Its nodes read RUN
    and the storage themselves, so these are on a shared disk or s3:// URLs.
    """
    from btinet.calibration.reliability import certify
    from btinet.inference.package import lasting_url, open_package
    from btinet.models.place import device_named

    try:
        from btinet.serving.app import LOOPBACK
        from btinet.serving.limits import MEGA, Limits
    except ModuleNotFoundError as error:
        raise InputError(f"btinet serve needs {error.name}: pip install 'btinet[serve]'") from error
    hosts = (*LOOPBACK, *(_as_in_url(name) for name in (host, *(allow_host or ()))))
    limits = Limits(int(max_megabytes * MEGA), int(max_megapixels * MEGA), timeout, queue)
    chosen, root = device_named(device), Storage(storage, endpoint)
    with bar("calibrating") as show:
        package = open_package(run, root, chosen, show)
    rule = certify(package.calibrated.calibration, max_risk, confidence, false_alarms)
    console.print(f"{package.info.run_id}: {rule}", markup=False)
    if not _is_loopback(host):
        console.print(
            f"warning: listening on {host}: whoever reaches it may use it; there is no password and no encryption. "
            f"Requests must address it as {' or '.join(dict.fromkeys(hosts))} (--allow-host)",
            markup=False,
            style="yellow",
        )
    with suppress(KeyboardInterrupt):  # what serves has ended in good order before it passes the signal on
        if os.environ.get("RAY_ADDRESS") and not in_process:
            from btinet.cluster.serve import Served

            served = Served(lasting_url(run, root), root.reference, max_risk, confidence, false_alarms)
            _serve_on_cluster(served, limits, hosts, host, port, replicas)
        else:
            _serve_here(package, rule, chosen, limits, hosts, host, port)
    console.print("stopped")


def _serve_here(
    package: Package, rule: Rule, device: torch.device, limits: Limits, hosts: tuple[str, ...], host: str, port: int
) -> None:
    import uvicorn

    from btinet.serving.app import make_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            _say_where(host, listening.getsockname()[1])

    app = make_app(package, rule, device, limits, hosts)
    with _listen(host, port) as listening:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            limit_concurrency=CONNECTIONS,
        )
        Server(config).run(sockets=[listening])


def _serve_on_cluster(
    served: Served, limits: Limits, hosts: tuple[str, ...], host: str, port: int, replicas: int
) -> None:
    from btinet.cluster.serve import serving_on_cluster
    from btinet.cluster.session import ray_session

    with ray_session(), serving_on_cluster(served, limits, hosts, host, port, replicas):
        _say_where(host, port, " on the cluster's head")
        signal.pause()


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        InputError: the address is not this machine's, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port}: {error.strerror}: name another port (0 takes a free one) or an address of "
            "this machine"
        ) from error
    return listening


def _as_in_url(host: str) -> str:
    """A name or address as URLs and Host headers have it: IPv6 in brackets.

    Raises:
        InputError: it is none.
    """
    with suppress(ValueError):
        address = ipaddress.ip_address(host.strip("[]"))
        return f"[{address}]" if address.version == 6 else str(address)
    if not re.fullmatch(r"\*|(\*\.)?[\w.-]+", host):
        raise InputError(f"--allow-host {host}: give a name without a port, *.NAME for all below it, or * for any")
    return host


def _say_where(host: str, port: int, machine: str = "") -> None:
    console.print(f"http://{_as_in_url(host)}:{port}{machine}   (Ctrl-C stops it)", markup=False)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

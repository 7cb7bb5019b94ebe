"""Around every answer: the headers that keep a browser from anything but this page's own work, and a count.

Who does not address this server by one of its names gets no other answer than that.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from btinet.serving.metrics import Metrics

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PREDICT = "/v1/predict"


class Envelope:
    """ASGI middleware.

    Args:
        policy: the Content-Security-Policy.
        hosts: names that a request's Host header may have; ``*.example.com`` for all below one, ``*`` for any.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, policy: str, hosts: Sequence[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.hosts = [host.lower() for host in hosts]
        self.headers = HEADERS | {"Content-Security-Policy": policy}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
                self._count(scope, message["status"], time.monotonic() - started)
            await send(message)

        if self._is_ours(Headers(scope=scope).get("host", "")):
            await self.app(scope, receive, send_counted)
        else:
            detail = f"the Host header is none of {', '.join(self.hosts)}: use one, or serve with --allow-host"
            await JSONResponse({"detail": detail}, 400)(scope, receive, send_counted)

    def _is_ours(self, host: str) -> bool:
        name = re.sub(r":\d+$", "", host.lower())
        return any(own in ("*", name) or (own[:2] == "*." and name.endswith(own[1:])) for own in self.hosts)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        path = getattr(scope.get("route"), "path", "other")  # what was asked for only where it is ours: names are kept
        self.metrics.requests.labels(path, status).inc()
        if path == PREDICT and status == 200:
            self.metrics.seconds.observe(seconds)

"""Around every answer: the headers that keep a browser from anything but this page's own work, and a count."""

from __future__ import annotations

import time

from starlette.datastructures import MutableHeaders
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
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, policy: str) -> None:
        self.app = app
        self.metrics = metrics
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

        await self.app(scope, receive, send_counted)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        path = getattr(scope.get("route"), "path", "other")  # what was asked for only where it is ours: names are kept
        self.metrics.requests.labels(path, status).inc()
        if path == PREDICT and status == 200:
            self.metrics.seconds.observe(seconds)

"""The web application: routes, and what every answer carries. Nothing in a request names a place to read from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager

import torch
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

import btinet
from btinet.calibration.reliability import Rule
from btinet.inference.package import Package
from btinet.serving.answer import Answer, Description, describe
from btinet.serving.envelope import PREDICT, Envelope
from btinet.serving.limits import MEGA, Limits, Refused
from btinet.serving.metrics import Metrics
from btinet.serving.page import render_page
from btinet.serving.upload import KINDS, NAMES
from btinet.serving.worker import Worker

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""Names of this machine; a browser that another site has led here by a name of its own sends that name."""

REFUSALS = {
    400: "the body ended early, or the Host header is none of this server's",
    408: "the upload took too long",
    413: "the body is too large, or the image has too many pixels",
    415: "the Content-Type is none that is taken",
    422: "the image cannot be decoded",
    429: "too many requests wait already; Retry-After says when to try again",
    503: "the prediction was not ready in time; Retry-After says when to try again",
}


class Problem(BaseModel):
    """Why there is no prediction."""

    detail: str


def make_app(
    package: Package, rule: Rule, device: torch.device, limits: Limits, hosts: Sequence[str] = LOOPBACK
) -> FastAPI:
    """The application that serves a package.

    Args:
        hosts: names that a request's Host header may have, see :class:`btinet.serving.envelope.Envelope`.
    """
    worker = Worker(package, rule, device, limits)
    description = describe(package, rule, limits)
    page = render_page(description)
    metrics = Metrics(worker)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(worker.warm_up)
        yield
        await asyncio.to_thread(worker.close)

    app = FastAPI(
        title=f"BTI-Net: {package.info.run_id}",
        version=btinet.__version__,
        description="Lesion mask and class of an image, and whether to rely on them. Not a medical device.",
        lifespan=lifespan,
        docs_url=None,  # the pages that come with FastAPI load their scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Envelope, metrics=metrics, policy=page.policy, hosts=hosts)

    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"detail": error.detail}, error.status, error.headers)

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page.html)

    @app.post(
        PREDICT,
        summary="Predict one image, which is the request's body",
        responses={status: {"description": text, "model": Problem} for status, text in REFUSALS.items()},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in KINDS},
            }
        },
    )
    async def predict(request: Request, preview: bool = False) -> Answer:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in KINDS:
            raise Refused(415, f"Content-Type {kind or 'is missing'}: send {NAMES} as one of {', '.join(KINDS)}")
        timer = asyncio.timeout(limits.seconds)
        content = None
        with ExitStack() as place:
            place.enter_context(worker.place())
            try:
                async with timer:
                    content = await read_body(request, limits.max_bytes)
                    found = await worker.predict(content, preview, place)
            except TimeoutError as error:
                if content is None:
                    raise Refused(408, f"the upload took longer than {limits.seconds:g} s") from error
                detail = f"no prediction within {limits.seconds:g} s: try again later"
                raise Refused(503, detail, retry_after=worker.taken * worker.seconds) from error
        metrics.predictions.labels(found.reliable).inc()
        return found

    @app.get("/v1/model", summary="The model, what `reliable: yes` promises, and what is taken")
    async def model() -> Description:
        return description

    @app.get("/healthz", summary="The process answers")
    async def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    @app.get("/readyz", summary="A prediction would be taken now", responses={503: {"description": "it would not"}})
    async def readyz() -> PlainTextResponse:
        return PlainTextResponse("full\n", 503) if worker.is_full else PlainTextResponse("ready\n")

    @app.get("/metrics", summary="For Prometheus")
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=metrics.content_type)

    return app


async def read_body(request: Request, max_bytes: int) -> bytes:
    """A request's body, but not more than ``max_bytes`` of it.

    Raises:
        Refused: 413 as soon as it is clear that it is larger; 400 if it ends early.
    """
    too_large = Refused(413, f"the body is larger than {max_bytes / MEGA:g} MB")
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise too_large
    except ClientDisconnect as error:
        raise Refused(400, "the body ended early") from error
    return bytes(body)

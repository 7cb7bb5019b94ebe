"""The application in this process: what it answers, what it refuses, and that it says what `btinet predict` says."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import re
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit

from btinet.calibration.reliability import certify
from btinet.evaluation.schema import LEVELS
from btinet.inference.package import Package, load_package
from btinet.inference.predict import encoded
from btinet.serving.app import make_app
from btinet.serving.limits import Limits
from btinet.storage import Storage
from tests.inference.test_images import RAMP, write_dicom
from tests.inference.test_predict_cli import Run

KINDS = {"png": "image/png", "jpg": "image/jpeg", "tiff": "image/tiff", "bmp": "image/bmp", "dcm": "application/dicom"}
PNG = {"Content-Type": "image/png"}
Session = Callable[[httpx.AsyncClient], Awaitable[Any]]


@pytest.fixture(scope="module")
def loaded(package: Path) -> Package:
    return load_package(Storage(str(package)))


@pytest.fixture
def make(loaded: Package) -> Callable[..., FastAPI]:
    """An application with other limits than usual."""
    rule = certify(loaded.calibrated.calibration, 0.1, 0.9, 0.05)
    return lambda **limits: make_app(loaded, rule, torch.device("cpu"), Limits(**limits))


def talk(app: FastAPI, session: Session) -> Any:
    """Run a session with a client of the application."""

    async def run() -> Any:
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url=HERE) as client:
            return await session(client)

    return asyncio.run(run())


HERE = "http://127.0.0.1:8000"


def post(app: FastAPI, content: bytes, kind: str = "image/png", **options: Any) -> httpx.Response:
    return talk(
        app, lambda client: client.post("/v1/predict", content=content, headers={"Content-Type": kind}, **options)
    )


def get(app: FastAPI, path: str, **headers: str) -> httpx.Response:
    return talk(app, lambda client: client.get(path, headers=headers))


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (40, 90, 40)).save(stream, "PNG", compress_level=9)
    return stream.getvalue()


def tiff(more: dict[int, int]) -> bytes:
    """A black TIFF of 8x8 pixels with more tags."""
    tags = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64} | more
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + 64) + bytes(64) + directory


TRUNCATED = [png(8, 8)[:count] for count in (12, 20, 30, 40)]
SLOW = png(3000, 3000)
"""Few bytes that take long to decode."""


def test_as_predict(make: Callable[..., FastAPI], btinet: Run, package: Path, images: Path, tmp_path: Path) -> None:
    """Every number, the verdict and the mask's bytes are those of the command, for every format."""
    assert btinet("predict", images, "--run", package, "--out", tmp_path, "--batch-size", 1)[0] == 0
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert len(rows) == 5
    for row in rows:
        file = Path(row["image"])
        answer = post(make(), file.read_bytes(), KINDS[file.suffix[1:]]).json()
        for name in ("reliable", "reason", "class", "width", "height", "lesion_area"):
            assert answer[name] == row[name]
        flat = {f"p_{name}": value for name, value in answer["probabilities"].items()} | answer["statistics"]
        for name, values in answer["signals"].items():
            flat |= {f"{name}_{level}": value for level, value in zip(LEVELS, values, strict=True)}
        flat |= {
            name: answer[name] for name in ("confidence", "entropy", "mask_confidence", "distance", "lesion_share")
        }
        said = {name: value for name, value in row.items() if isinstance(value, float)}
        assert {name: np.float32(value) for name, value in flat.items()} == said
        assert base64.b64decode(answer["mask"]) == (tmp_path / row["mask"]).read_bytes()
        assert answer["preview"] is None


def test_preview(make: Callable[..., FastAPI], images: Path) -> None:
    """Of any kind a JPEG that every browser shows, of at most 1024 pixels a side."""
    answer = post(make(), (images / "deep/e.dcm").read_bytes(), "application/dicom", params={"preview": "true"}).json()
    with Image.open(io.BytesIO(base64.b64decode(answer["preview"]))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (50, 40))
    answer = post(make(), SLOW, params={"preview": "true"}).json()
    with Image.open(io.BytesIO(base64.b64decode(answer["preview"]))) as picture:
        assert picture.size == (1024, 1024)


class TestType:
    @pytest.mark.parametrize("kind", ["image/gif", "text/plain", "application/x-www-form-urlencoded", ""])
    def test_not_taken(self, make: Callable[..., FastAPI], kind: str) -> None:
        answer = post(make(), png(8, 8), kind)
        assert answer.status_code == 415 and "image/png" in answer.json()["detail"]

    def test_parameters_and_case(self, make: Callable[..., FastAPI]) -> None:
        assert post(make(), png(8, 8), "Image/PNG; charset=binary").status_code == 200

    def test_the_content_decides(self, make: Callable[..., FastAPI], images: Path) -> None:
        """A JPEG that is called PNG is read all the same; a GIF or a PostScript file is not, whatever it is called."""
        assert post(make(), (images / "b.jpg").read_bytes()).status_code == 200
        stream = io.BytesIO()
        Image.new("L", (8, 8)).save(stream, "GIF")
        postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
        for content in (stream.getvalue(), postscript):
            answer = post(make(), content)
            assert answer.status_code == 422 and "is not an image of these kinds: PNG" in answer.json()["detail"]


class TestSize:
    def test_announced(self, make: Callable[..., FastAPI]) -> None:
        """A body that says it is too large is not read."""
        asked = []

        async def body() -> AsyncIterator[bytes]:
            asked.append(1)
            yield b"x" * 2000

        async def session(client: httpx.AsyncClient) -> httpx.Response:
            return await client.post("/v1/predict", content=body(), headers=PNG | {"Content-Length": "2000"})

        answer = talk(make(max_bytes=1000), session)
        assert answer.status_code == 413 and "larger than 0.001 MB" in answer.json()["detail"] and not asked

    def test_while_streaming(self, make: Callable[..., FastAPI]) -> None:
        """One that does not say so is not read to its end, which this one has not."""
        sent = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                sent += 400
                yield b"x" * 400

        answer = talk(make(max_bytes=1000), lambda client: client.post("/v1/predict", content=body(), headers=PNG))
        assert answer.status_code == 413
        assert sent == 1200

    def test_pixels(self, make: Callable[..., FastAPI]) -> None:
        content = png(100, 100)
        assert post(make(max_pixels=10_000), content).status_code == 200
        answer = post(make(max_pixels=9_999), content)
        assert answer.status_code == 413 and "100 x 100 pixels are 0.0 megapixels" in answer.json()["detail"]

    def test_bomb(self, make: Callable[..., FastAPI]) -> None:
        """60,000 x 60,000 pixels in a few bytes: refused by the header, without decoding."""

        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
        content = (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        )
        answer = post(make(), content)
        assert answer.status_code == 413

    def test_dicom_bomb(self, make: Callable[..., FastAPI], tmp_path: Path) -> None:
        content = write_dicom(tmp_path / "i.dcm", RAMP, Rows=60_000, Columns=60_000).read_bytes()
        answer = post(make(), content, "application/dicom")
        assert answer.status_code == 413 and "3600.0 megapixels; at most 25" in answer.json()["detail"]

    def test_jpeg_in_dicom(self, make: Callable[..., FastAPI], tmp_path: Path) -> None:
        """Its own size counts, not the one that the header says."""
        data = pydicom.dcmread(write_dicom(tmp_path / "i.dcm", RAMP))
        data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        data.PixelData = encapsulate([encoded(Image.new("L", (1000, 1000)), "JPEG")])
        data.save_as(tmp_path / "d.dcm")
        answer = post(make(max_pixels=10_000), (tmp_path / "d.dcm").read_bytes(), "application/dicom")
        assert answer.status_code == 413 and "1000 x 1000 pixels" in answer.json()["detail"]

    def test_tile(self, make: Callable[..., FastAPI]) -> None:
        """A tile is decoded whole, however small its image."""
        answer = post(make(max_pixels=10_000), tiff({TILEWIDTH: 4096, TILELENGTH: 4096}), "image/tiff")
        assert answer.status_code == 413 and "4096 x 4096 pixels" in answer.json()["detail"]

    def test_deflated_dicom(self, make: Callable[..., FastAPI], tmp_path: Path) -> None:
        """It could inflate to anything before its size is known."""
        data = pydicom.dcmread(write_dicom(tmp_path / "i.dcm", RAMP))
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        data.save_as(tmp_path / "d.dcm", enforce_file_format=True)
        answer = post(make(), (tmp_path / "d.dcm").read_bytes(), "application/dicom")
        assert answer.status_code == 422 and "deflated" in answer.json()["detail"]


@pytest.mark.parametrize("content", [b"", b"text", *TRUNCATED, b"\0" * 128 + b"DICMtext"])
def test_bad_image(make: Callable[..., FastAPI], content: bytes) -> None:
    answer = post(make(), content)
    assert answer.status_code == 422 and answer.json()["detail"].startswith("the upload: ")


def test_nothing_is_fetched(make: Callable[..., FastAPI], tmp_path: Path) -> None:
    """A path or a URL as body or as parameter is text; nobody calls at the address."""
    (tmp_path / "i.png").write_bytes(png(8, 8))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/i.png"
        for named in (url, str(tmp_path / "i.png"), f"file://{tmp_path}/i.png"):
            answer = post(make(), named.encode(), params={"url": named, "path": named, "run": named})
            assert answer.status_code == 422 and str(tmp_path) not in answer.text
        with pytest.raises(TimeoutError):
            listening.accept()


class TestBusy:
    def test_back_pressure(self, make: Callable[..., FastAPI]) -> None:
        """One is worked on, one waits, two are sent away at once; the others' answers are right."""
        app = make(waiting=1)

        async def session(client: httpx.AsyncClient) -> list[httpx.Response]:
            requests = [client.post("/v1/predict", content=SLOW, headers=PNG) for _ in range(4)]
            answers = await asyncio.gather(*requests)
            assert "btinet_places_taken 0.0" in (await client.get("/metrics")).text
            return answers

        answers = talk(app, session)
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429]
        for answer in answers:
            if answer.status_code == 429:
                assert int(answer.headers["Retry-After"]) >= 1 and "try again later" in answer.json()["detail"]
            else:
                assert answer.json()["width"] == 3000

    def test_event_loop_stays_free(self, make: Callable[..., FastAPI]) -> None:
        """While an image is decoded the server tells that it lives, and that it is full."""

        async def session(client: httpx.AsyncClient) -> tuple[httpx.Response, ...]:
            assert (await client.get("/readyz")).status_code == 200
            working = asyncio.create_task(client.post("/v1/predict", content=SLOW, headers=PNG))
            await asyncio.sleep(0.02)
            found = await client.get("/healthz"), await client.get("/readyz")
            assert not working.done()
            return (*found, await working, await client.get("/readyz"))

        answers = talk(make(waiting=0), session)
        assert [answer.status_code for answer in answers] == [200, 503, 200, 200]

    def test_time_out(self, make: Callable[..., FastAPI]) -> None:
        """503, and the place stays taken until the thread is done with it."""

        async def session(client: httpx.AsyncClient) -> None:
            answer = await client.post("/v1/predict", content=SLOW, headers=PNG)
            assert answer.status_code == 503 and int(answer.headers["Retry-After"]) >= 1
            assert "no prediction within 0.05 s" in answer.json()["detail"]
            assert (await client.post("/v1/predict", content=SLOW, headers=PNG)).status_code == 429
            while (await client.get("/readyz")).status_code == 503:  # pytest's own time-out bounds it
                await asyncio.sleep(0.01)

        talk(make(seconds=0.05, waiting=0), session)

    def test_slow_upload(self, make: Callable[..., FastAPI]) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"\x89PNG"
            await asyncio.sleep(60)

        async def session(client: httpx.AsyncClient) -> None:
            answer = await client.post("/v1/predict", content=body(), headers=PNG)
            assert answer.status_code == 408 and "longer than 0.1 s" in answer.json()["detail"]
            assert "btinet_places_taken 0.0" in (await client.get("/metrics")).text

        talk(make(seconds=0.1), session)


class TestBrowser:
    def test_policy(self, make: Callable[..., FastAPI]) -> None:
        """The page's own script and styles by their hashes, and nothing else; no other address is named in it."""
        answer = get(make(), "/")
        policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert policy["connect-src"] == "'self'"
        for tag in ("script", "style"):
            contents = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
            digests = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
            assert digests and policy[f"{tag}-src"].split() == [f"'sha256-{digest}'" for digest in digests]
        assert not re.findall(r"""(?:src|href|url\()\s*[=(]?\s*["']?(?:https?:)?//""", answer.text)

    def test_headers(self, make: Callable[..., FastAPI]) -> None:
        """On every answer, refusals included; none lets another site read it."""
        answers = [get(make(), path) for path in ("/", "/v1/model", "/none")]
        for answer in (*answers, post(make(), b"text"), get(make(), "/", Host="x")):
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "no-store"
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert not [name for name in answer.headers if name.startswith("access-control")]

    @pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000"])
    def test_own_names(self, make: Callable[..., FastAPI], host: str) -> None:
        assert get(make(), "/", Host=host).status_code == 200

    @pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.0.1:8000"])
    def test_other_names(self, make: Callable[..., FastAPI], host: str) -> None:
        """A site that has its name point here gets nothing."""
        answer = get(make(), "/", Host=host)
        assert answer.status_code == 400 and "--allow-host" in answer.json()["detail"]

    def test_allowed_names(self, loaded: Package) -> None:
        rule = certify(loaded.calibrated.calibration, 0.1, 0.9, 0.05)
        app = make_app(loaded, rule, torch.device("cpu"), Limits(), ["[2001:db8::5]", "*.Example"])
        for host, status in {"[2001:DB8::5]:8000": 200, "lab.example": 200, "example": 400, "localhost": 400}.items():
            assert get(app, "/healthz", Host=host).status_code == status


def test_openapi(make: Callable[..., FastAPI], images: Path) -> None:
    """What is answered is what the description says, and the description says which bodies are taken."""
    described = get(make(), "/openapi.json").json()
    operation = described["paths"]["/v1/predict"]["post"]
    assert set(operation["requestBody"]["content"]) == set(KINDS.values())
    assert {"200", "408", "413", "415", "422", "429", "503"} <= operation["responses"].keys()
    answers = {"post": post(make(), (images / "a.png").read_bytes()), "get": get(make(), "/v1/model")}
    for method, path in (("post", "/v1/predict"), ("get", "/v1/model")):
        schema = described["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(answers[method].json(), schema | {"components": described["components"]})
    assert set(answers["get"].json()["kinds"]) == set(KINDS.values())


def test_metrics(make: Callable[..., FastAPI], images: Path) -> None:
    async def session(client: httpx.AsyncClient) -> str:
        for content in (b"text", (images / "a.png").read_bytes(), (images / "a.png").read_bytes()):
            await client.post("/v1/predict", content=content, headers=PNG)
        await client.get("/anything/at/all")
        return (await client.get("/metrics")).text

    text = talk(make(), session)
    for line in (
        'btinet_requests_total{path="/v1/predict",status="200"} 2.0',
        'btinet_requests_total{path="/v1/predict",status="422"} 1.0',
        'btinet_requests_total{path="other",status="404"} 1.0',
        "btinet_predict_seconds_count 2.0",
    ):
        assert line in text
    assert sum(float(count) for count in re.findall(r"^btinet_predictions_total.* (.*)", text, re.MULTILINE)) == 2
    assert float(re.findall(r"^process_resident_memory_bytes (.*)", text, re.MULTILINE)[0]) > 1e8

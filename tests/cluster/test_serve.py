"""`btinet serve` on a Ray cluster: the answers of the server in one process, its refusals, and nothing left behind."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image

from btinet.datasets.phantom import draw
from tests.integration.cluster import Nodes, free_port, ray_cluster, wait_for
from tests.serving.server import PROGRAM, listening, served
from tests.training.micro import KEY, Bench

PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with ray_cluster() as nodes:
        yield nodes


def start(cluster: Nodes, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | cluster.auth | {"RAY_ADDRESS": f"127.0.0.1:{cluster.port}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([PROGRAM, "serve", *arguments], env=environment, stderr=subprocess.PIPE, text=True)


@contextmanager
def on_cluster(cluster: Nodes, *arguments: str) -> Iterator[str]:
    """The URL of a server on the cluster, for the duration of the block; then nothing of Ray Serve is left."""
    process = start(cluster, "--port", str(free_port()), *arguments)
    with listening(process, r"http://\S+(?= on the cluster's head)") as server:
        yield server.url
    wait_for(lambda: not cluster._processes("ray::Serve"), "replicas and controller are gone", 30)
    wait_for(lambda: not cluster._processes("ray::ProxyActor"), "the proxy is gone", 30)


@pytest.mark.slow
def test_as_in_one_process(cluster: Nodes, package: Path, tmp_path: Path) -> None:
    """The same answer to a real image; the same refusals; too many at a time are told when to come again."""
    file = tmp_path / "i.png"
    Image.fromarray(draw(3)[0]).resize((1500, 1500)).save(file)
    content = file.read_bytes()

    def post(url: str) -> httpx.Response:
        return httpx.post(f"{url}/v1/predict?preview=true", content=content, headers=PNG, timeout=60)

    options = ["--run", str(package), "--queue", "1", "--max-megabytes", "6"]
    with served(package, *options[2:]) as alone:
        expected = post(alone.url).json()
    with on_cluster(cluster, *options) as url:
        assert post(url).json() == expected
        assert httpx.get(f"{url}/").text.startswith("<!doctype html>")
        assert httpx.get(f"{url}/readyz").text == "ready\n"
        assert httpx.get(f"{url}/-/healthz").text == "success", "Ray Serve's own"
        assert 'path="/v1/predict",status="200"} 1.0' in httpx.get(f"{url}/metrics").text
        assert httpx.get(f"{url}/", headers={"Host": "evil.example"}).status_code == 400
        assert httpx.post(f"{url}/v1/predict", content=b"x" * 6_000_001, headers=PNG).status_code == 413
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: post(url), range(8)))
        assert {answer.status_code for answer in answers} == {200, 429}
        for answer in answers:
            if answer.status_code == 429:
                assert int(answer.headers["Retry-After"]) >= 1
            else:
                assert answer.json() == expected


@pytest.mark.slow
def test_a_run_from_storage(cluster: Nodes, micro: Bench) -> None:
    """By its key: the replica opens it from the storage. A second server has no room beside the first."""
    reference = ["--run", KEY, "--storage", micro.root.url]
    with on_cluster(cluster, *reference) as url:
        assert httpx.get(f"{url}/v1/model").json()["run_id"] == micro.bound.run_id
        second = start(cluster, *reference, "--port", str(free_port()))
        assert "Ray Serve already runs on this cluster" in second.communicate(timeout=120)[1]
        assert second.returncode == 2
        assert httpx.get(f"{url}/healthz").status_code == 200


@pytest.mark.slow
def test_too_few_places(cluster: Nodes, package: Path) -> None:
    process = start(cluster, "--run", str(package), "--replicas", "9")
    said = " ".join(process.communicate(timeout=120)[1].split())
    assert "--replicas 9: the cluster has 1 CPU(s), and each replica needs one" in said
    assert process.returncode == 2


@pytest.mark.slow
def test_port_is_taken(cluster: Nodes, package: Path) -> None:
    """Nothing of Ray Serve is left then, either."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(cluster, "--run", str(package), "--port", str(port))
        said = " ".join(process.communicate(timeout=120)[1].split())
    assert f"Failed to bind to address '127.0.0.1:{port}'. Name another port" in said
    assert process.returncode == 2
    wait_for(lambda: not cluster._processes("ray::Serve"), "the controller is gone", 30)


def test_no_reason() -> None:
    """Ray may not say why no replica started."""
    from btinet.cluster.serve import _last_line

    assert _last_line("") == "Ray does not say why"
    assert _last_line("one\ntwo\n") == "two"

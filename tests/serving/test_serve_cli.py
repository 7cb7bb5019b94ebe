"""`btinet serve` before it serves; what it does then is in test_page.py."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from btinet.serve_cli import _as_in_url, _is_loopback
from tests.inference.test_predict_cli import Run
from tests.serving.server import served


def test_port_is_taken(btinet: Run, package: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = btinet("serve", "--run", package, "--port", port)
    assert status == 2 and f"--host 127.0.0.1 --port {port}: Address already in use: name another port" in said


def test_another_machines_address(btinet: Run, package: Path) -> None:
    status, said = btinet("serve", "--run", package, "--host", "192.0.2.1")
    assert status == 2 and "an address of this machine" in said
    assert "warning: listening on 192.0.2.1: whoever reaches it may use it" in said


def test_no_such_run(btinet: Run, tmp_path: Path) -> None:
    status, said = btinet("serve", "--run", "phantom/btinet/full/99", "--storage", tmp_path)
    assert status == 2 and "neither a run's folder nor a run in" in said


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.0.0.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert _is_loopback(host) is expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [("fe80::1", "[fe80::1]"), ("[::1]", "[::1]"), ("0.0.0.0", "0.0.0.0"), ("*.lab", "*.lab"), ("*", "*")],
)
def test_in_urls(host: str, expected: str) -> None:
    assert _as_in_url(host) == expected


@pytest.mark.parametrize("host", ["lab.*", "lab.example:8443", "http://lab"])
def test_no_host(btinet: Run, package: Path, host: str) -> None:
    status, said = btinet("serve", "--run", package, "--allow-host", host)
    assert status == 2 and f"--allow-host {host}: give a name without a port" in said


def test_nothing_can_be_promised(package: Path) -> None:
    """As `btinet predict` says it, before the address."""
    with served(package, "--max-risk", "0.2") as server:
        assert "no guarantee for a risk of 0.2 at confidence 0.9" in server.said[0]

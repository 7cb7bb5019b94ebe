"""What every test shares: an environment of its own, the shared folder, a real S3 server, a real browser."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.browser import chromium, quiet_page

REPOSITORY = Path(__file__).parents[1]
FOREIGN = ("AWS_", "BTINET_", "PREFECT_", "RAY_ADDRESS", "DVC_", "MAKE", "MFLAGS", "ARGS")  # `make test ARGS=...`, too
KEPT = ("BTINET_TEST_SHARED", "BTINET_S3_VENV")


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is imported, hide the user's settings, credentials and caches from the tests."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background job: children would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    home = config.stash[_home] = Path(tempfile.mkdtemp(prefix="btinet-tests-"))
    for name in list(os.environ):
        if name.startswith(FOREIGN) and name not in KEPT:
            del os.environ[name]
    os.environ |= {
        "BTINET_CACHE": str(home / "cache"),
        "AWS_CONFIG_FILE": str(home / "no-aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "no-aws-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "MPLBACKEND": "Agg",
    }
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_home], ignore_errors=True)


_home = pytest.StashKey[Path]()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real datasets and weights."""
    folder = Path(os.environ.get("BTINET_TEST_SHARED") or REPOSITORY.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no shared folder at {folder}: set BTINET_TEST_SHARED")
    return folder


@dataclass(frozen=True)
class S3Server:
    """A running S3 server and the variables that let a client in."""

    endpoint: str
    bucket: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """infra/s3/serve.py on free ports; the very first start installs it, which takes under a minute."""
    folder = tmp_path_factory.mktemp("s3")
    ready, log = folder / "ready.json", folder / "serve.log"
    command = [sys.executable, str(REPOSITORY / "infra/s3/serve.py"), str(folder / "data")]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--port", "0", "--ready-file", str(ready), "--with-parent"],
            stdout=stream,
            stderr=stream,
        )
    try:
        deadline = time.monotonic() + 300
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the S3 server did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield S3Server(**json.loads(ready.read_text()))
    finally:
        process.terminate()  # it ends the servers it started
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()  # the kernel then ends its servers
            process.wait()


@pytest.fixture
def s3_env(monkeypatch: pytest.MonkeyPatch, s3_server: S3Server) -> S3Server:
    """The S3 server, with this test's environment pointing at it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium. A module's own: while Playwright runs, an event loop runs in this thread."""
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page of the browser; errors in its console, and requests beyond this machine, fail the test."""
    with quiet_page(browser) as opened:
        yield opened

"""What is particular to S3, on a real server. The contract it shares with a disk: tests/test_storage.py."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from btinet.errors import InputError
from btinet.storage import Storage, file_sha256


@pytest.fixture
def root(s3_env) -> Storage:
    return Storage(f"s3://{s3_env.bucket}/{uuid.uuid4().hex}")


def test_a_large_file_goes_up_in_parts_and_comes_back(root: Storage, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(np.random.default_rng(0).bytes(20 * 2**20))
    for file, write in (
        (root / "uploaded", lambda file: file.upload(source)),
        (root / "written", lambda file: file.write_bytes(source.read_bytes())),
    ):
        write(file)
        assert file.size() == source.stat().st_size
        file.download(target)
        assert file_sha256(target) == file_sha256(source) == file.sha256()


def test_endpoint_given_instead_of_the_environment(root: Storage, s3_env, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").write_bytes(b"x")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert (Storage(root.url, s3_env.endpoint) / "file").read_bytes() == b"x"


def test_another_process_sees_what_is_written_and_is_seen(root: Storage) -> None:
    assert root.children() == []
    code = "import sys; from btinet.storage import Storage; (Storage(sys.argv[1]) / 'file').write_bytes(b'x')"
    subprocess.run([sys.executable, "-c", code, root.url], check=True)
    assert [child.name for child in root.children()] == ["file"]


def test_folder_markers_are_no_files(root: Storage) -> None:
    """Other tools (pyarrow, web consoles) mark a folder by an empty object whose name ends in a slash."""
    root.fs.call_s3("put_object", Bucket=root.path.partition("/")[0], Key=root.path.partition("/")[2] + "/")
    (root / "file").write_bytes(b"x")
    assert [child.name for child in root.children()] == ["file"]
    assert [found.name for found in root.find("")] == ["file"]


@pytest.mark.parametrize(
    ("changes", "bucket"),
    [({"AWS_SECRET_ACCESS_KEY": "not-the-secret"}, None), ({}, "there-is-no-such-bucket")],
    ids=["wrong secret", "no such bucket"],
)
def test_check_writable_refuses(s3_env, changes: dict[str, str], bucket: str | None) -> None:
    """In a process of its own, as clients keep the credentials they started with."""
    url = f"s3://{bucket or s3_env.bucket}/prefix"
    code = (
        "import sys\nfrom btinet.errors import InputError\nfrom btinet.storage import Storage\n"
        "try:\n    Storage(sys.argv[1]).check_writable()\n"
        "except InputError as error:\n    sys.exit(f'refused: {error}')"
    )
    command = [sys.executable, "-c", code, url]
    done = subprocess.run(command, env=os.environ | changes, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"refused: storage {url} at endpoint {s3_env.endpoint} cannot be written: ")
    assert "check the bucket's name, the endpoint" in done.stderr
    assert "AWS_SECRET_ACCESS_KEY" in done.stderr
    for secret in ("not-the-secret", s3_env.environment["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in done.stderr


class TlsServer(NamedTuple):
    endpoint: str
    ca_bundle: Path


@pytest.fixture
def tls_server(s3_env, tmp_path: Path) -> Iterator[TlsServer]:
    """The S3 server behind TLS, with a certificate that only its own CA bundle vouches for."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl command to make a certificate with")
    certificate, key = tmp_path / "ca.pem", tmp_path / "key.pem"
    request = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=btinet-test -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*request.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    port = int(s3_env.endpoint.rpartition(":")[2])

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
        pair = copy(reader, upstream_writer), copy(upstream_reader, writer)
        await asyncio.gather(*pair, return_exceptions=True)

    ready, stop, ports = threading.Event(), asyncio.Event(), []

    async def serve() -> None:
        async with await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context) as server:
            ports.append((server.sockets[0].getsockname()[1], asyncio.get_running_loop()))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    [(own_port, loop)] = ports
    yield TlsServer(f"https://127.0.0.1:{own_port}", certificate)
    loop.call_soon_threadsafe(stop.set)
    thread.join()


def test_private_certificate_authority(s3_env, tls_server: TlsServer) -> None:
    url = f"s3://{s3_env.bucket}/{uuid.uuid4().hex}"
    with pytest.raises(InputError, match=r"cannot be written: .*CERTIFICATE_VERIFY_FAILED.*storage.ca_bundle"):
        Storage(url, tls_server.endpoint).check_writable()

    root = Storage(url, tls_server.endpoint, "us-east-1", "path", str(tls_server.ca_bundle))
    root.check_writable()
    (root / "t.parquet").write_table(pa.table({"x": [1, 2]}))
    # s3fs, and pyarrow as Ray and pyarrow.dataset use it
    assert (root / "t.parquet").exists()
    assert ds.dataset(root.path, filesystem=root.arrow_filesystem(), format="parquet").count_rows() == 2
    # what another process makes of the reference that a cluster job is sent
    code = "import json, sys; from btinet.storage import Storage; print(Storage(**json.loads(sys.argv[1])).find(''))"
    environment = {name: value for name, value in os.environ.items() if name != "AWS_ENDPOINT_URL"}
    command = [sys.executable, "-c", code, json.dumps(root.reference)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"[Storage('{root.url}/t.parquet')]\n"
    # the standard variable instead of the setting
    command = [sys.executable, "-c", code, json.dumps(root.reference | {"ca_bundle": None})]
    environment["AWS_CA_BUNDLE"] = str(tls_server.ca_bundle)
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == done.stdout

"""One URL -> files on a disk or in object storage, with atomic writes.

Everything that outlives a process goes through :class:`Storage`. A reader sees a file either whole or not at
all: on a disk a file is written beside its final name and renamed; an object store publishes an object when
its upload completes. Retries of object-storage requests are botocore's and s3fs's, bounded.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from btinet.errors import InputError

CHUNK = 8 * 2**20
CHECK_SECONDS = 15
"""How long check_writable waits for an object store."""
PART = ".part"
"""Ends the name of a file that is still being written; what a killed writer leaves is never listed."""
REMEDY = (
    "check the bucket's name, the endpoint (storage.endpoint or AWS_ENDPOINT_URL), the credentials (AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY) and, for https, storage.ca_bundle or AWS_CA_BUNDLE"
)
"""What to do when an object store is not reached."""


class Server(NamedTuple):
    """Where object storage is and how it is spoken to: ``storage`` in an experiment file, less the URL."""

    endpoint: str | None = None
    region: str | None = None
    addressing_style: str | None = None
    ca_bundle: str | None = None

    def with_environment(self) -> Server:
        """What is left out, from the standard AWS variables.

        AWS_CA_BUNDLE is left to the client: which file that is may differ from machine to machine.
        """
        return self._replace(
            endpoint=self.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
            region=self.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        )


@lru_cache
def _filesystem(protocol: str, server: Server, patient: bool = True) -> fsspec.AbstractFileSystem:
    """The client; a patient one retries for up to a minute, so that a run survives a server's restart."""
    if protocol == "file":
        return fsspec.filesystem("file")
    if protocol != "s3":
        remedy = "use file://PATH or s3://BUCKET/PREFIX"
        raise InputError(f"storage URL scheme {protocol!r} is not supported: {remedy}")
    if server.ca_bundle and not Path(server.ca_bundle).is_file():
        raise InputError(
            f"storage.ca_bundle: {server.ca_bundle}: no such file on {socket.gethostname()}: it must be there on every "
            "machine, or left out where AWS_CA_BUNDLE names each machine's own"
        )
    client = fsspec.filesystem(
        "s3",
        endpoint_url=server.endpoint,
        client_kwargs={"region_name": server.region, "verify": server.ca_bundle},
        use_listings_cache=False,  # other processes write here; a cached listing would hide their files
        config_kwargs={
            "connect_timeout": 10 if patient else 5,
            "read_timeout": 60 if patient else 10,
            "retries": {"max_attempts": 6 if patient else 1, "mode": "standard"},
            "s3": {"addressing_style": server.addressing_style or ("path" if server.endpoint else "auto")},
        },
    )
    if not patient:
        client.retries = 1  # s3fs repeats what botocore gave up on
    return client


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raise the client's own errors (no server there, no credentials) as OSErrors, as a disk's are."""
    try:
        yield
    except Exception as error:
        # named, as the client is there for s3:// only and takes long to import
        if type(error).__module__.partition(".")[0] not in ("botocore", "aiobotocore", "aiohttp"):
            raise
        raise ConnectionError(f"the storage is not reached: {error}; {REMEDY}") from error


class Storage:
    """A file or folder under a storage root; ``/`` makes a child, as with :class:`pathlib.Path`.

    Args:
        url: ``file:///abs/path``, a plain path, or ``s3://bucket/prefix``.
        endpoint: URL of an S3-compatible server; ``AWS_ENDPOINT_URL`` is used when omitted. Credentials come
            from the standard AWS environment or files, never from here.
        region: for signatures; ``AWS_REGION`` is used when omitted.
        addressing_style: ``path`` or ``virtual``, where the bucket's name goes in a request; ``auto`` leaves it to
            botocore. By default ``path`` with an endpoint, ``auto`` without.
        ca_bundle: PEM file of the authorities that vouch for the endpoint; ``AWS_CA_BUNDLE`` is used when omitted.
    """

    def __init__(
        self,
        url: str,
        endpoint: str | None = None,
        region: str | None = None,
        addressing_style: str | None = None,
        ca_bundle: str | None = None,
    ) -> None:
        protocol, _, path = url.partition("://") if "://" in url else ("file", "", url)
        if protocol == "file":
            path = str(Path(path).expanduser().absolute())
        if not path:
            raise InputError(f"storage URL {url!r} names no bucket: use s3://BUCKET/PREFIX")
        self.protocol = protocol
        self.path = path.rstrip("/")
        # the environment is asked here, so that whoever is handed the reference reaches the same server
        server = Server(endpoint, region, addressing_style, ca_bundle)
        self.server = server.with_environment() if protocol == "s3" else Server()
        self.fs = _filesystem(protocol, self.server)

    @property
    def url(self) -> str:
        return f"{self.protocol}://{self.path}"

    @property
    def endpoint(self) -> str | None:
        return self.server.endpoint

    @property
    def reference(self) -> dict[str, str | None]:
        """What another process makes the same storage of: ``Storage(**reference)``. Holds no credentials."""
        return {"url": self.url, **self.server._asdict()}

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def is_local(self) -> bool:
        return self.protocol == "file"

    def __truediv__(self, child: str) -> Storage:
        return Storage(f"{self.url}/{child}", *self.server)

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def arrow_filesystem(self) -> pa.fs.FileSystem:
        """For libraries that take a pyarrow filesystem; pair it with ``path``."""
        return pa.fs.LocalFileSystem() if self.is_local else pa.fs.PyFileSystem(pa.fs.FSSpecHandler(self.fs))

    # reading

    @_os_errors()
    def exists(self) -> bool:
        return bool(self.fs.exists(self.path))

    @_os_errors()
    def size(self) -> int:
        """Size in bytes; FileNotFoundError where there is no such file."""
        return int(self.fs.size(self.path))

    @_os_errors()
    def read_bytes(self) -> bytes:
        return bytes(self.fs.cat_file(self.path))

    def read_json(self) -> Any:
        return json.loads(self.read_bytes())

    def read_table(self) -> pa.Table:
        """Read one Parquet file."""
        # not pq.read_table: its threads may still let go of what it read when the process ends, which aborts it
        return pq.ParquetFile(pa.BufferReader(self.read_bytes())).read()

    @_os_errors()
    def sha256(self) -> str:
        with self.fs.open(self.path, "rb") as stream:
            return stream_sha256(stream)

    @_os_errors()
    def download(self, target: Path) -> None:
        """Copy this file to ``target`` on the local disk, atomically."""
        _replace(target, lambda part: self.fs.get_file(self.path, str(part)))

    @_os_errors()
    def children(self) -> list[Storage]:
        """The files and folders directly below, by name; none if this folder does not exist."""
        if not self.exists():
            return []
        entries = (entry.rstrip("/") for entry in self.fs.ls(self.path, detail=False))
        names = sorted(entry.rpartition("/")[2] for entry in entries if entry != self.path)
        return [self / name for name in names if not name.endswith(PART)]

    @_os_errors()
    def find(self, suffix: str) -> list[Storage]:
        """Every file at any depth below whose name ends in ``suffix``, by path."""
        if not self.exists():
            return []
        found = sorted(path for path in self.fs.find(self.path) if path.endswith(suffix))
        found = [path for path in found if not path.endswith((PART, "/"))]
        return [Storage(f"{self.protocol}://{path}", *self.server) for path in found]

    # writing

    @_os_errors()
    def write_bytes(self, data: bytes) -> None:
        if self.is_local:
            _replace(Path(self.path), lambda part: part.write_bytes(data))
        else:
            self.fs.pipe_file(self.path, data)

    def write_text(self, text: str) -> None:
        self.write_bytes(text.encode())

    def write_json(self, value: Any) -> None:
        self.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")

    def write_table(self, table: pa.Table) -> None:
        """Write one Parquet file."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self.write_bytes(buffer.getvalue())

    @_os_errors()
    def upload(self, source: Path) -> None:
        """Copy a file from the local disk to here, atomically."""
        if self.is_local:
            _replace(Path(self.path), lambda part: shutil.copyfile(source, part))
        else:
            self.fs.put_file(str(source), self.path)

    @_os_errors()
    def remove(self) -> None:
        """Remove this file, or this folder and all below it; nothing happens where there is none."""
        if self.exists():
            self.fs.rm(self.path, recursive=True)

    def check_writable(self) -> None:
        """Write and remove a small file, so that a wrong URL or credential is known before work starts."""
        probe = self / f".probe-{uuid.uuid4().hex}"
        try:
            if self.is_local:
                probe.write_bytes(b"btinet")
            else:
                client = _filesystem(self.protocol, self.server, patient=False)
                client.pipe_file(probe.path, b"btinet", timeout=CHECK_SECONDS)
            probe.remove()
        except Exception as error:
            reason = str(error) or f"no answer in {CHECK_SECONDS} s"
            where = f" at endpoint {self.endpoint}" if self.endpoint else ""
            remedy = "check that the folder can be created and written" if self.is_local else REMEDY
            raise InputError(f"storage {self.url}{where} cannot be written: {reason}; {remedy}") from error


def refused(error: PermissionError) -> str:
    """What to do when the storage takes this machine's credentials no longer."""
    return (
        f"the storage refuses access: {error}; renew the credentials where this process gets them "
        "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a credentials file; for files, their permissions) and run "
        "again: it goes on from the last checkpoint"
    )


def is_full(error: OSError) -> bool:
    """Whether a disk had no room left."""
    return error.errno == errno.ENOSPC


NO_ROOM = "make room on this node (BTINET_CACHE, TMPDIR and file:// storage are where btinet writes)"
"""What to do then."""


def cache_folder() -> Path:
    """Where this machine keeps what it can make or download again."""
    return Path(os.environ.get("BTINET_CACHE", "~/.cache/btinet")).expanduser()


def stream_sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return stream_sha256(stream)


def _replace(target: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``target``, then rename it onto ``target``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}{PART}")
    try:
        write(part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)

"""What is particular to S3, on a real server. The contract it shares with a disk: tests/test_storage.py."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest

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

"""One contract for every kind of storage, and what is particular to a disk.

The contract runs on a disk and on a real S3 server; what is particular to S3 is in
tests/integration/test_s3_storage.py.
"""

from __future__ import annotations

import hashlib
import itertools
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from botocore.exceptions import EndpointConnectionError

from btinet import storage
from btinet.errors import InputError
from btinet.progress import read_progress
from btinet.storage import Storage, file_sha256


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty place on each kind of storage."""
    if request.param == "disk":
        return Storage(str(tmp_path / "store"))
    bucket = request.getfixturevalue("s3_env").bucket
    return Storage(f"s3://{bucket}/{uuid.uuid4().hex}")


class TestContract:
    def test_bytes_text_and_json_come_back(self, root: Storage) -> None:
        (root / "a.bin").write_bytes(b"\x00\xff")
        (root / "deep/er/b.txt").write_text("τ\n")
        (root / "c.json").write_json({"b": [1, None], "a": 0.1})
        assert (root / "a.bin").read_bytes() == b"\x00\xff"
        assert (root / "deep/er/b.txt").read_bytes() == "τ\n".encode()
        assert (root / "c.json").read_json() == {"a": 0.1, "b": [1, None]}

    def test_empty_file(self, root: Storage) -> None:
        (root / "empty").write_bytes(b"")
        assert (root / "empty").exists()
        assert (root / "empty").size() == 0
        assert (root / "empty").read_bytes() == b""

    def test_writing_again_replaces(self, root: Storage) -> None:
        file = root / "file"
        file.write_bytes(b"a longer first version")
        file.write_bytes(b"second")
        assert file.read_bytes() == b"second"
        assert file.size() == 6

    def test_exists_sees_files_and_folders_at_once(self, root: Storage) -> None:
        assert not root.exists()
        assert not (root / "folder/file").exists()
        (root / "folder/file").write_bytes(b"x")
        assert root.exists()
        assert (root / "folder").exists()
        assert (root / "folder/file").exists()
        assert not (root / "fold").exists()

    def test_what_is_not_there(self, root: Storage, tmp_path: Path) -> None:
        missing = root / "missing"
        with pytest.raises(FileNotFoundError):
            missing.read_bytes()
        with pytest.raises(FileNotFoundError):
            missing.size()
        with pytest.raises(FileNotFoundError):
            missing.download(tmp_path / "target")
        assert not list(tmp_path.glob("target*"))
        assert missing.children() == []
        assert missing.find("") == []
        missing.remove()

    def test_table(self, root: Storage) -> None:
        table = pa.table({"sample_id": ["a", "b"], "p": pa.array([0.25, None], pa.float32())})
        (root / "t.parquet").write_table(table)
        assert (root / "t.parquet").read_table().equals(table)

    def test_tables_are_one_dataset_through_fs(self, root: Storage) -> None:
        for method, value in (("btinet", 1.0), ("unet", 2.0)):
            part = root / f"predictions/dataset=busi/method={method}/run.parquet"
            part.write_table(pa.table({"dice": [value]}))
        folder = root / "predictions"
        dataset = ds.dataset(folder.path, filesystem=folder.fs, format="parquet", partitioning="hive")
        assert sorted(dataset.to_table().to_pylist(), key=lambda row: row["dice"]) == [
            {"dice": 1.0, "dataset": "busi", "method": "btinet"},
            {"dice": 2.0, "dataset": "busi", "method": "unet"},
        ]
        assert dataset.to_table(filter=ds.field("method") == "unet")["dice"].to_pylist() == [2.0]

    def test_children_are_files_and_folders_by_name(self, root: Storage) -> None:
        for name in ("b/one", "b/two", "c", "a"):
            (root / name).write_bytes(b"x")
        assert [child.name for child in root.children()] == ["a", "b", "c"]
        assert [child.name for child in (root / "b").children()] == ["one", "two"]
        assert (root / "b").children()[0].read_bytes() == b"x"

    def test_find_looks_below_at_any_depth(self, root: Storage) -> None:
        for name in ("x/y/b.json", "a.json", "x/c.txt", "x.json.bak"):
            (root / name).write_bytes(b"x")
        assert [found.url for found in root.find(".json")] == [f"{root.url}/a.json", f"{root.url}/x/y/b.json"]
        assert len(root.find("")) == 4

    def test_unfinished_files_are_not_listed(self, root: Storage) -> None:
        (root / "whole").write_bytes(b"x")
        (root / f"broken.{uuid.uuid4().hex}.part").write_bytes(b"x")
        assert [child.name for child in root.children()] == ["whole"]
        assert [found.name for found in root.find("")] == ["whole"]

    def test_remove_takes_a_file_or_a_folder_and_no_more(self, root: Storage) -> None:
        for name in ("run-1/a", "run-1/b/c", "run-10/a"):
            (root / name).write_bytes(b"x")
        (root / "run-1").remove()
        assert [found.url for found in root.find("")] == [f"{root.url}/run-10/a"]
        (root / "run-10/a").remove()
        assert not (root / "run-10/a").exists()

    def test_upload_download_and_hashes(self, root: Storage, tmp_path: Path) -> None:
        source, target = tmp_path / "source", tmp_path / "new/folder/target"
        source.write_bytes(bytes(range(256)) * 50)
        file = root / "weights/model.safetensors"
        file.upload(source)
        file.download(target)
        assert target.read_bytes() == source.read_bytes()
        assert file.sha256() == file_sha256(source) == hashlib.sha256(source.read_bytes()).hexdigest()
        assert [path.name for path in target.parent.iterdir()] == ["target"]

    def test_upload_of_nothing_leaves_nothing(self, root: Storage, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            (root / "file").upload(tmp_path / "missing")
        assert root.find("") == []

    def test_check_writable_leaves_nothing(self, root: Storage) -> None:
        root.check_writable()
        assert root.find("") == []

    def test_a_reader_never_sees_part_of_a_file(self, root: Storage) -> None:
        file = root / "file"
        versions = [letter * 400_000 for letter in (b"a", b"b")]
        file.write_bytes(versions[0])
        stop = threading.Event()

        def write() -> None:
            for version in itertools.cycle(versions):
                file.write_bytes(version)
                if stop.is_set():
                    return

        writer = threading.Thread(target=write)
        writer.start()
        try:
            seen = {file.read_bytes() for _ in range(40)}
        finally:
            stop.set()
            writer.join()
        assert seen <= set(versions)

    def test_pickled_for_another_process(self, root: Storage) -> None:
        (root / "file").write_bytes(b"x")
        again = pickle.loads(pickle.dumps(root))
        assert again.url == root.url
        assert (again / "file").read_bytes() == b"x"


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "expected", "name"),
        [
            ("/data/results", "file:///data/results", "results"),
            ("/data/results/", "file:///data/results", "results"),
            ("file:///data/results", "file:///data/results", "results"),
            ("s3://bucket/some/prefix/", "s3://bucket/some/prefix", "prefix"),
            ("s3://bucket", "s3://bucket", "bucket"),
        ],
    )
    def test_url_and_name(self, url: str, expected: str, name: str) -> None:
        place = Storage(url)
        assert place.url == str(place) == expected
        assert place.name == name
        assert place.is_local == expected.startswith("file://")

    @pytest.mark.parametrize("url", ["results/here", "file://results/here"])
    def test_relative_paths_count_from_here(self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert Storage(url).url == f"file://{tmp_path}/results/here"

    def test_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert Storage("~/results").url == f"file://{tmp_path}/results"

    def test_slash_makes_children(self) -> None:
        child = Storage("s3://bucket/root", endpoint="http://127.0.0.1:9") / "runs/x" / "receipt.json"
        assert child.url == "s3://bucket/root/runs/x/receipt.json"
        assert child.endpoint == "http://127.0.0.1:9"

    def test_unsupported_scheme(self) -> None:
        with pytest.raises(InputError, match=r"'gs' is not supported: use file://PATH or s3://BUCKET/PREFIX"):
            Storage("gs://bucket/x")

    def test_no_bucket(self) -> None:
        with pytest.raises(InputError, match="names no bucket: use s3://BUCKET/PREFIX"):
            Storage("s3://")


class TestServer:
    """How object storage is spoken to; none of these opens a connection."""

    @pytest.fixture(autouse=True)
    def credentials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")

    def test_children_and_references_reach_the_same_server(self) -> None:
        root = Storage("s3://bucket/root", "http://127.0.0.1:9", "eu-west-1", "virtual")
        for same in ((root / "a"), Storage(**(root / "a").reference), pickle.loads(pickle.dumps(root / "a"))):
            assert same.url == "s3://bucket/root/a"
            assert same.server == root.server
            assert same.fs is root.fs or same.fs.client_kwargs == root.fs.client_kwargs

    def test_environment_stands_in_for_what_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:8")
        monkeypatch.setenv("AWS_REGION", "eu-west-1")
        expected = {"url": "s3://bucket", "endpoint": "http://127.0.0.1:8", "region": "eu-west-1"}
        reference = Storage("s3://bucket").reference
        assert reference == expected | {"addressing_style": None, "ca_bundle": None}, "it holds no credentials"
        given = Storage("s3://bucket", "http://127.0.0.1:9", "us-west-2")
        assert given.reference["endpoint"] == "http://127.0.0.1:9" and given.reference["region"] == "us-west-2"
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:7")
        assert Storage("s3://bucket").endpoint == "http://127.0.0.1:7"
        assert Storage("/data").endpoint is None

    @pytest.mark.parametrize(
        ("endpoint", "style", "expected"),
        [
            ("http://store.test:9", None, "http://store.test:9/bucket/file?"),
            ("http://store.test:9", "virtual", "http://bucket.store.test:9/file?"),
            (None, "path", "https://s3.eu-west-1.amazonaws.com/bucket/file?"),
            (None, None, "https://bucket.s3.amazonaws.com/file?"),
        ],
    )
    def test_addressing_style_and_region(self, endpoint: str | None, style: str | None, expected: str) -> None:
        file = Storage("s3://bucket/file", endpoint, "eu-west-1", style)
        assert file.fs.sign(file.path).startswith(expected)
        assert file.fs.s3.meta.region_name == "eu-west-1"

    def test_missing_ca_bundle(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"storage.ca_bundle: .*none.pem: no such file on .*AWS_CA_BUNDLE"):
            Storage("s3://bucket", ca_bundle=str(tmp_path / "none.pem"))


class TestDisk:
    @pytest.mark.parametrize("before", [None, b"the version before"])
    def test_a_writer_killed_halfway_leaves_nothing_readable(self, tmp_path: Path, before: bytes | None) -> None:
        root = Storage(str(tmp_path))
        file = root / "predictions.parquet"
        if before:
            file.write_bytes(before)
        code = f"from btinet.storage import Storage; Storage({file.path!r}).write_bytes(bytes(2**29))"
        writer = subprocess.Popen([sys.executable, "-c", code])
        try:
            deadline = time.monotonic() + 60
            while not any(part.stat().st_size for part in tmp_path.glob("*.part")):
                assert writer.poll() is None
                assert time.monotonic() < deadline
        finally:
            writer.kill()
            writer.wait()

        assert writer.returncode == -signal.SIGKILL
        assert len(list(tmp_path.glob("*.part"))) == 1  # it was killed halfway, not after
        listed = [file.name] if before else []
        assert [child.name for child in root.children()] == listed
        assert [found.name for found in root.find("")] == listed
        assert file.exists() == bool(before)
        if before:
            assert file.read_bytes() == before

    def test_a_failed_write_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(OSError):
            Storage(str(tmp_path / "folder")).write_bytes(b"x")
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]

    def test_check_writable_names_the_place_and_the_remedy(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        root = Storage(str(tmp_path / "file/store"))
        with pytest.raises(InputError) as caught:
            root.check_writable()
        message = str(caught.value)
        assert message.startswith(f"storage {root.url} cannot be written: ")
        assert message.endswith("check that the folder can be created and written")


def test_server_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own error is an OSError as any other: whoever watches a run's progress goes on."""
    file = Storage("s3://bucket/progress.json", "http://127.0.0.1:9")

    def cat_file(path: str) -> bytes:
        raise EndpointConnectionError(endpoint_url=f"http://127.0.0.1:9/{path}")

    monkeypatch.setattr(file.fs, "cat_file", cat_file)
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9/bucket/progress\.json.*check the bucket's name"):
        file.read_bytes()
    assert read_progress(file) is None


@pytest.mark.parametrize("listening", [False, True], ids=["closed port", "silent server"])
def test_check_writable_soon_tells_that_no_server_answers(listening: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(storage, "CHECK_SECONDS", 3)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:
            server.listen()
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(InputError) as caught:
            Storage("s3://bucket/prefix", endpoint).check_writable()
    assert time.monotonic() - start < 20
    message = str(caught.value)
    assert message.startswith(f"storage s3://bucket/prefix at endpoint {endpoint} cannot be written: ")
    assert "check the bucket's name, the endpoint (storage.endpoint or AWS_ENDPOINT_URL)" in message


def test_a_process_that_has_just_read_a_table_ends_well(tmp_path: Path) -> None:
    """pq.read_table leaves threads behind that abort three processes of ten (apache/arrow#34314)."""
    file = tmp_path / "t.parquet"
    Storage(str(file)).write_table(pa.table({"a": list(range(1000)), "b": ["x"] * 1000}))
    command = [sys.executable, "-c", f"from btinet.storage import Storage; Storage({str(file)!r}).read_table()"]
    for _ in range(20):
        subprocess.run(command, check=True)

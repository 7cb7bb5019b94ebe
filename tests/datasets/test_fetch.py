from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from btinet.datasets import fetch as module
from btinet.datasets.archive import extract
from btinet.datasets.fetch import RELEASES, fetch
from btinet.errors import InputError

SHARED = Path(os.environ.get("BTINET_TEST_SHARED", Path(__file__).parents[3] / "shared"))
DATAVERSE_LISTING = "/api/datasets/:persistentId/?persistentId=doi:10.7910/DVN/DBW86T"
FIGSHARE_LISTING = "/v2/articles/30533120"
ZIP_URL = "/v2/file/download/59298329"


@dataclass
class Fault:
    """How the server misbehaves when it is asked for one path."""

    drop_after: list[int] = field(default_factory=list)
    """Bytes after which the connection breaks, an answer each."""
    busy: int = 0
    """Answers 503 so many times."""
    status: int = 0
    ignores_range: bool = False
    wrong_range: bool = False
    stall_after: int = 0
    redirect: str = ""


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path, with Range, and remembers what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, Fault] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.cookies: list[str] = []
        self.stop_stalling = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self, path: str) -> list[str | None]:
        """The Range of every request for ``path``."""
        return [asked_range for asked, asked_range in self.requests if asked == path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers["Range"]))
        self.server.cookies += self.headers.get_all("Cookie", [])
        fault = self.server.faults.get(self.path, Fault())
        if fault.redirect:
            return self.answer(302, b"", Location=fault.redirect)
        if fault.busy:
            fault.busy -= 1
            return self.answer(503, b"")
        if fault.status or self.path not in self.server.files:
            return self.answer(fault.status or 404, b"")
        body = self.server.files[self.path]
        status, headers, start = 200, {"Set-Cookie": "session=1; Path=/"}, 0
        if self.headers["Range"] and not fault.ignores_range:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            start -= fault.wrong_range
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return self.answer(status, body[start:], fault, **headers)

    def answer(self, status: int, body: bytes, fault: Fault | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault and fault.stall_after:
            self.wfile.write(body[: fault.stall_after])
            self.server.stop_stalling.wait(30)
            self.close_connection = True
        elif fault and fault.drop_after:
            self.wfile.write(body[: fault.drop_after.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.stop_stalling.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DELAYS", (0.0, 0.0, 0.0))


def zip_bytes(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


BRISC_MEMBERS = {
    f"brisc2025/{folder}/{split}_1.{kind}": np.random.default_rng(len(folder)).bytes(20_000)
    for split in ("train", "test")
    for folder, kind in {
        f"classification_task/{split}/glioma": "jpg",
        f"segmentation_task/{split}/images": "jpg",
        f"segmentation_task/{split}/masks": "png",
    }.items()
}
BRISC_ZIP = zip_bytes(BRISC_MEMBERS)
HAM_CSV = b"lesion_id,image_id,dx\nHAM_1,ISIC_1,nv\n"
HAM_FILES = {
    "HAM10000_images_part_1.zip": zip_bytes({"ISIC_1.jpg": b"one", "__MACOSX/._ISIC_1.jpg": b"Finder"}),
    "HAM10000_images_part_2.zip": zip_bytes({"ISIC_2.jpg": b"two", "ISIC_3.jpg": b"three"}),
    "HAM10000_segmentations_lesion_tschandl.zip": zip_bytes(
        {
            "HAM10000_segmentations_lesion_tschandl/ISIC_1_segmentation.png": b"mask",
            "__MACOSX/HAM10000_segmentations_lesion_tschandl/._ISIC_1_segmentation.png": b"Finder",
        }
    ),
    "HAM10000_metadata.tab": HAM_CSV,
}
HAM_LAYOUT = {
    "HAM10000_images_part_1/ISIC_1.jpg": b"one",
    "HAM10000_images_part_2/ISIC_2.jpg": b"two",
    "HAM10000_images_part_2/ISIC_3.jpg": b"three",
    "HAM10000_segmentations_lesion_tschandl/ISIC_1_segmentation.png": b"mask",
    "HAM10000_metadata.csv": HAM_CSV,
}
BUSI_MEMBERS = {
    f"Dataset_BUSI_with_GT/{name}/{name} (1).png": name.encode() for name in ("benign", "malignant", "normal")
}


def serve_brisc(server: Server) -> None:
    entry = {"id": 59298329, "name": "brisc2025.zip", "size": len(BRISC_ZIP), "computed_md5": md5(BRISC_ZIP)}
    server.files = {FIGSHARE_LISTING: json.dumps({"files": [entry]}).encode(), ZIP_URL: BRISC_ZIP}


def serve_ham10000(server: Server) -> None:
    entries = []
    for number, (name, data) in enumerate([*HAM_FILES.items(), ("ISIC2018_Task3_Test_Images.zip", b"not wanted")]):
        file = {"id": number, "filename": name, "filesize": len(data), "md5": md5(data)}
        url = f"/api/access/datafile/{number}"
        if name.endswith(".tab"):
            server.files[url] = data.replace(b",", b"\t")
            url += "?format=original"
            file |= {"filesize": 12, "originalFileFormat": "text/csv", "originalFileSize": len(data)}
        server.files[url] = data
        entries.append({"label": name, "dataFile": file})
    server.files[DATAVERSE_LISTING] = json.dumps({"data": {"latestVersion": {"files": entries}}}).encode()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_brisc_from_figshare(server: Server, tmp_path: Path) -> None:
    serve_brisc(server)
    seen: list[tuple[int, int, str]] = []
    assert fetch("brisc2025", tmp_path / "data", mirror=server.url, progress=lambda *news: seen.append(news))
    assert tree(tmp_path / "data") == BRISC_MEMBERS
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["brisc2025"]
    assert seen[-1] == (len(BRISC_ZIP), len(BRISC_ZIP), "brisc2025.zip")
    assert server.cookies == []


def test_ham10000_from_dataverse(server: Server, tmp_path: Path) -> None:
    serve_ham10000(server)
    assert fetch("ham10000", tmp_path, mirror=server.url + "/")
    assert tree(tmp_path) == HAM_LAYOUT
    assert "/api/access/datafile/4" not in {path for path, _ in server.requests}


def test_a_second_call_asks_for_nothing(server: Server, tmp_path: Path) -> None:
    serve_ham10000(server)
    fetch("ham10000", tmp_path, mirror=server.url)
    server.requests.clear()
    assert not fetch("ham10000", tmp_path, mirror=server.url)
    assert server.requests == []


def test_only_missing_parts_are_fetched(server: Server, tmp_path: Path) -> None:
    serve_ham10000(server)
    fetch("ham10000", tmp_path, mirror=server.url)
    shutil.rmtree(tmp_path / "HAM10000_images_part_2")
    server.requests.clear()
    assert fetch("ham10000", tmp_path, mirror=server.url)
    assert server.requests == [(DATAVERSE_LISTING, None), ("/api/access/datafile/1", None)]
    assert tree(tmp_path) == HAM_LAYOUT


def test_an_interrupted_download_asks_only_for_the_rest(server: Server, tmp_path: Path) -> None:
    serve_brisc(server)
    server.faults[ZIP_URL] = Fault(drop_after=[50_000, 30_000])
    fetch("brisc2025", tmp_path, mirror=server.url)
    assert server.asked(ZIP_URL) == [None, "bytes=50000-", "bytes=80000-"]
    assert tree(tmp_path) == BRISC_MEMBERS


def test_a_download_that_keeps_breaking_is_given_up_and_gone_on_with_later(server: Server, tmp_path: Path) -> None:
    serve_brisc(server)
    server.faults[ZIP_URL] = Fault(drop_after=[10_000] * 4)
    with pytest.raises(InputError, match=r"file/download/59298329: .* in 4 attempts: run the same command again"):
        fetch("brisc2025", tmp_path, mirror=server.url)
    assert not (tmp_path / "brisc2025").exists()
    server.requests.clear()
    fetch("brisc2025", tmp_path, mirror=server.url)
    assert server.asked(ZIP_URL) == ["bytes=40000-"]
    assert tree(tmp_path) == BRISC_MEMBERS


def test_a_killed_process_is_gone_on_from(server: Server, tmp_path: Path) -> None:
    serve_brisc(server)
    server.faults[ZIP_URL] = Fault(stall_after=60_000)
    code = "import sys; from pathlib import Path; from btinet.datasets.fetch import fetch\n"
    code += f"fetch('brisc2025', Path(sys.argv[1]), mirror={server.url!r})"
    part = tmp_path / ".fetch-brisc2025" / "brisc2025.zip.part"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as process:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size > 40_000):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    server.faults.clear()
    server.requests.clear()
    size = part.stat().st_size
    fetch("brisc2025", tmp_path, mirror=server.url)
    assert server.asked(ZIP_URL) == [f"bytes={size}-"]
    assert tree(tmp_path) == BRISC_MEMBERS


@pytest.mark.parametrize("fault", [Fault(ignores_range=True), Fault(wrong_range=True)])
def test_a_server_without_ranges_gives_the_whole_again(server: Server, tmp_path: Path, fault: Fault) -> None:
    serve_brisc(server)
    server.faults[ZIP_URL] = fault
    fault.drop_after = [100_000]
    fetch("brisc2025", tmp_path, mirror=server.url)
    assert server.asked(ZIP_URL)[:2] == [None, "bytes=100000-"]
    assert tree(tmp_path) == BRISC_MEMBERS


def test_what_is_left_from_another_version_is_found_out(server: Server, tmp_path: Path) -> None:
    serve_brisc(server)
    work = tmp_path / ".fetch-brisc2025"
    work.mkdir()
    (work / "brisc2025.zip.part").write_bytes(b"x" * (len(BRISC_ZIP) + 7))
    with pytest.raises(InputError, match="what came has MD5"):
        fetch("brisc2025", tmp_path, mirror=server.url)
    assert fetch("brisc2025", tmp_path, mirror=server.url)


def test_a_verified_archive_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    serve_brisc(server)
    work = tmp_path / ".fetch-brisc2025"
    work.mkdir()
    (work / "brisc2025.zip").write_bytes(BRISC_ZIP)  # as a call leaves it that was killed while it unpacked
    (work / "unpacked-1").mkdir()
    fetch("brisc2025", tmp_path, mirror=server.url)
    assert server.asked(ZIP_URL) == []
    assert tree(tmp_path) == BRISC_MEMBERS


@pytest.mark.parametrize("wrong", [BRISC_ZIP[:-1] + b"!", BRISC_ZIP + b"!"])
def test_a_wrong_checksum_removes_the_file(server: Server, tmp_path: Path, wrong: bytes) -> None:
    serve_brisc(server)
    server.files[ZIP_URL] = wrong
    with pytest.raises(InputError) as caught:
        fetch("brisc2025", tmp_path, mirror=server.url)
    message = str(caught.value)
    assert f"{server.url}{ZIP_URL}: what came has MD5 {md5(wrong)}, its publisher says {md5(BRISC_ZIP)}" in message
    assert "it was removed" in message
    assert "--archive brisc2025.zip" in message
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_end_is_not_read_to_its_end(server: Server, tmp_path: Path) -> None:
    serve_brisc(server)
    server.files[ZIP_URL] = BRISC_ZIP + bytes(20_000_000)
    seen: list[int] = []
    with pytest.raises(InputError, match="it was removed"):
        fetch("brisc2025", tmp_path, mirror=server.url, progress=lambda done, total, file: seen.append(done))
    assert seen[-1] < 1_000_000


@pytest.mark.parametrize("url", [FIGSHARE_LISTING, ZIP_URL])
def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path, url: str) -> None:
    serve_brisc(server)
    server.faults[url] = Fault(busy=2)
    fetch("brisc2025", tmp_path, mirror=server.url)
    assert len(server.asked(url)) == 3
    assert tree(tmp_path) == BRISC_MEMBERS


@pytest.mark.parametrize(("url", "status"), [(FIGSHARE_LISTING, 404), (ZIP_URL, 404), (ZIP_URL, 202), (ZIP_URL, 403)])
def test_a_refusal_is_final(server: Server, tmp_path: Path, url: str, status: int) -> None:
    serve_brisc(server)
    server.faults[url] = Fault(status=status)
    with pytest.raises(InputError) as caught:
        fetch("brisc2025", tmp_path, mirror=server.url)
    assert f"{server.url}{url}: HTTP {status}" in str(caught.value)
    assert "10.5281/zenodo.17524350" in str(caught.value)
    assert len(server.asked(url)) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^http://127.0.0.1:1/v2/articles/30533120: .*refused.* in 4 attempts"):
        fetch("brisc2025", tmp_path, mirror="http://127.0.0.1:1")


def test_redirects_are_followed_with_the_range(server: Server, tmp_path: Path) -> None:
    serve_brisc(server)
    server.files["/bucket"] = BRISC_ZIP
    server.faults = {ZIP_URL: Fault(redirect="/bucket"), "/bucket": Fault(drop_after=[50_000])}
    fetch("brisc2025", tmp_path, mirror=server.url)
    assert server.asked("/bucket") == [None, "bytes=50000-"]


@pytest.mark.parametrize("address", ["file:///etc/passwd", "http://example.org/brisc2025.zip", "ftp://127.0.0.1/x"])
def test_redirects_leave_https_for_nothing_else(server: Server, tmp_path: Path, address: str) -> None:
    serve_brisc(server)
    server.faults[ZIP_URL] = Fault(redirect=address)
    with pytest.raises(InputError, match="only https is allowed"):
        fetch("brisc2025", tmp_path, mirror=server.url)


@pytest.mark.parametrize("mirror", ["http://mirror.lab.example", "mirror.lab.example", "file:///mirror"])
def test_a_mirror_needs_https(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(InputError, match="only https is allowed"):
        fetch("brisc2025", tmp_path, mirror=mirror)


@pytest.mark.parametrize(
    ("listing", "fault"),
    [
        (b"<html>", "its answer is not JSON"),
        (b"{}", "unexpected list of files"),
        (b"[]", "unexpected list of files"),
        (b'{"files": []}', r"not one brisc2025.zip among its publisher's files \(none\)"),
    ],
)
def test_a_changed_api_is_told(server: Server, tmp_path: Path, listing: bytes, fault: str) -> None:
    server.files[FIGSHARE_LISTING] = listing
    with pytest.raises(InputError, match=fault):
        fetch("brisc2025", tmp_path, mirror=server.url)


def test_a_full_disk_is_found_before_anything_is_downloaded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_brisc(server)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * len(BRISC_ZIP) - 1))
    with pytest.raises(InputError, match=r"dataset 'brisc2025' needs 0.0 GB, and 0.0 GB are free: make room"):
        fetch("brisc2025", tmp_path, mirror=server.url)
    assert server.asked(ZIP_URL) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be stored there"):
        fetch("brisc2025", tmp_path / "file", mirror="http://127.0.0.1:1")


def test_half_a_dataset_laid_out_by_hand_is_told(tmp_path: Path) -> None:
    (tmp_path / "brisc2025" / "classification_task").mkdir(parents=True)
    with pytest.raises(InputError, match=r"brisc2025: exists but lacks .*: remove it"):
        fetch("brisc2025", tmp_path)


def test_an_unknown_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no dataset 'isic' to fetch: take one of busi, ham10000, brisc2025"):
        fetch("isic", tmp_path)


def test_busi_is_for_a_person_to_download(tmp_path: Path) -> None:
    target = tmp_path / "my data"
    with pytest.raises(InputError) as caught:
        fetch("busi", target)
    assert str(caught.value).splitlines() == [
        "dataset 'busi' is not downloaded automatically, because its licence is not stated by its publisher:",
        "  1. Read https://scholar.cu.edu.eg/?q=afahmy/pages/dataset and decide whether your use is allowed.",
        "  2. Download https://scholar.cu.edu.eg/Dataset_BUSI.zip.",
        f"  3. Where the download is, run: btinet data fetch busi --to '{target}' --archive Dataset_BUSI.zip",
    ]
    assert not target.exists()


def test_licences_are_told() -> None:
    assert {name: release.licence for name, release in RELEASES.items()} == {
        "busi": "not stated by its publisher",
        "ham10000": "CC BY-NC 4.0: not for commercial use",
        "brisc2025": "CC BY 4.0",
    }


# archives that a person downloaded


@pytest.mark.parametrize("name", ["Dataset_BUSI.zip", "archive (1).zip"])
@pytest.mark.parametrize("folder", ["", "Dataset_BUSI_with_GT/", "download/Dataset_BUSI_with_GT/", "BUSI/"])
def test_busi_from_an_archive(tmp_path: Path, name: str, folder: str) -> None:
    archive = tmp_path / name
    members = {key.replace("Dataset_BUSI_with_GT/", folder): data for key, data in BUSI_MEMBERS.items()}
    archive.write_bytes(zip_bytes(members))
    assert fetch("busi", tmp_path / "data", archives=[archive])
    assert tree(tmp_path / "data") == BUSI_MEMBERS
    assert archive.exists()
    assert not fetch("busi", tmp_path / "data")


def write_ham10000(folder: Path) -> list[Path]:
    folder.mkdir()
    paths = [folder / name.replace(".tab", ".csv") for name in HAM_FILES]
    for path, data in zip(paths, HAM_FILES.values(), strict=True):
        path.write_bytes(data)
    return paths


def test_ham10000_from_its_files(tmp_path: Path) -> None:
    archives = write_ham10000(tmp_path / "downloads")
    fetch("ham10000", tmp_path / "data", archives=archives)
    assert tree(tmp_path / "data") == HAM_LAYOUT


def test_ham10000_with_the_metadata_that_dataverse_converted(tmp_path: Path) -> None:
    *archives, metadata = write_ham10000(tmp_path / "downloads")
    table = metadata.rename(metadata.with_suffix(".tab"))
    fetch("ham10000", tmp_path / "data", archives=[*archives, table])
    assert tree(tmp_path / "data") == HAM_LAYOUT


def test_ham10000_from_an_archive_of_the_laid_out_dataset(tmp_path: Path) -> None:
    fetch("ham10000", tmp_path / "data", archives=write_ham10000(tmp_path / "downloads"))
    archive = tmp_path / "everything.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(tmp_path / "data", ".")
    fetch("ham10000", tmp_path / "copy", archives=[archive])
    assert tree(tmp_path / "copy") == HAM_LAYOUT


def test_archives_may_come_one_by_one(tmp_path: Path) -> None:
    *archives, last = write_ham10000(tmp_path / "downloads")
    with pytest.raises(InputError, match=r"HAM10000_metadata.csv still missing in .*: give them, too"):
        fetch("ham10000", tmp_path / "data", archives=archives)
    fetch("ham10000", tmp_path / "data", archives=[last])
    assert tree(tmp_path / "data") == HAM_LAYOUT


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    archive = tmp_path / "Dataset_BUSI.zip"
    archive.write_bytes(zip_bytes({"readme.txt": b"nothing"}))
    with pytest.raises(InputError, match=r"Dataset_BUSI.zip: nothing of dataset 'busi' is in it"):
        fetch("busi", tmp_path / "data", archives=[archive])
    with pytest.raises(InputError, match=r"--archive: no such file: .*lost.zip"):
        fetch("busi", tmp_path / "data", archives=[archive, tmp_path / "lost.zip"])
    assert list((tmp_path / "data").iterdir()) == []


# unpacking


def write_zip(path: Path, name: str, mode: int = 0) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.txt", "good")
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        archive.writestr(member, "evil")


def write_tar(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    with tarfile.open(path, "w:gz") as archive:
        for member_name, member_kind, member_link in (("good.txt", tarfile.REGTYPE, ""), (name, kind, link)):
            member = tarfile.TarInfo(member_name)
            member.type, member.linkname = member_kind, member_link
            member.size = 4 if member_kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"evil"))


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "{outside}/evil", "..\\evil", "C:\\evil"])
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_members_outside_the_folder_are_refused(tmp_path: Path, name: str, write: Callable[[Path, str], None]) -> None:
    name = name.format(outside=tmp_path)
    write(tmp_path / "archive", name)
    with pytest.raises(InputError) as caught:
        extract(tmp_path / "archive", tmp_path / "a" / "target")
    assert f"its member {name!r} lies outside the folder" in str(caught.value)
    assert tree(tmp_path).keys() == {"archive"}


@pytest.mark.parametrize("link", ["/etc/passwd", "../../evil", "good.txt"])
def test_symbolic_links_are_refused(tmp_path: Path, link: str) -> None:
    write_tar(tmp_path / "tar", "link", tarfile.SYMTYPE, link)
    write_zip(tmp_path / "zip", "link", 0o120777)
    for archive in ("tar", "zip"):
        with pytest.raises(InputError, match="its member 'link' is a link or device"):
            extract(tmp_path / archive, tmp_path / "target")
    assert tree(tmp_path).keys() == {"tar", "zip"}


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    write_tar(tmp_path / "tar", "device", kind)
    with pytest.raises(InputError, match="its member 'device' is a link or device"):
        extract(tmp_path / "tar", tmp_path / "target")
    assert tree(tmp_path).keys() == {"tar"}


def test_hard_links_stay_within_the_archive(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for link in ("../secret", str(tmp_path / "secret")):
        write_tar(tmp_path / "tar", "link", tarfile.LNKTYPE, link)
        with pytest.raises(InputError, match="lies outside"):
            extract(tmp_path / "tar", tmp_path / "target")
    write_tar(tmp_path / "tar", "link", tarfile.LNKTYPE, "good.txt")
    extract(tmp_path / "tar", tmp_path / "target")
    assert tree(tmp_path / "target") == {"good.txt": b"evil", "link": b"evil"}


def test_an_unsafe_archive_of_a_dataset_leaves_nothing(tmp_path: Path) -> None:
    archive = tmp_path / "Dataset_BUSI.zip"
    archive.write_bytes(zip_bytes(BUSI_MEMBERS | {"../../../evil": b"evil"}))
    with pytest.raises(InputError, match="lies outside"):
        fetch("busi", tmp_path / "data", archives=[archive])
    assert tree(tmp_path).keys() == {"Dataset_BUSI.zip"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_bomb_is_found_by_its_declared_size(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 5_000_000
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zeros", bytes(size))
    else:
        with tarfile.open(tmp_path / "bomb", "w:xz") as archive:
            member = tarfile.TarInfo("zeros")
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size - 1))
    with pytest.raises(InputError, match=r"bomb holds needs 0.0 GB"):
        extract(tmp_path / "bomb", tmp_path / "target")
    assert tree(tmp_path).keys() == {"bomb"}


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_an_archive_that_is_cut_short(tmp_path: Path, kind: str, kept: float) -> None:
    data = np.random.default_rng(0).bytes(100_000)
    whole = tmp_path / f"whole.{kind}"
    if kind == "zip":
        whole.write_bytes(zip_bytes({"data": data}))
    else:
        (tmp_path / "data").write_bytes(data)
        with tarfile.open(whole, f"w:{kind.partition('.')[2]}") as archive:
            archive.add(tmp_path / "data", "data")
        (tmp_path / "data").unlink()
    cut = tmp_path / "cut"
    # a tar is padded: cut within what it holds
    cut.write_bytes(whole.read_bytes()[: int(kept * min(whole.stat().st_size, 100_000))])
    with pytest.raises(InputError, match=f"{cut}: .*get this file again"):
        extract(cut, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_damaged_member_is_found(tmp_path: Path) -> None:
    data = bytearray(zip_bytes({"data": b"x" * 1000}))
    data[500] ^= 1
    (tmp_path / "zip").write_bytes(data)
    with pytest.raises(InputError, match=r"zip: is damaged or of an unsupported kind \(Bad CRC-32"):
        extract(tmp_path / "zip", tmp_path / "target")
    assert tree(tmp_path).keys() == {"zip"}


def test_an_encrypted_archive_is_told(tmp_path: Path) -> None:
    data = bytearray(zip_bytes({"data": b"x"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    (tmp_path / "zip").write_bytes(data)
    with pytest.raises(InputError, match="encrypted"):
        extract(tmp_path / "zip", tmp_path / "target")


def test_extract_does_not_mix_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "zip").write_bytes(zip_bytes({"a/b": b"1"}))
    (tmp_path / "empty").mkdir()
    extract(tmp_path / "zip", tmp_path / "empty")
    assert tree(tmp_path / "empty") == {"a/b": b"1"}
    with pytest.raises(InputError, match=r"empty: exists: remove it"):
        extract(tmp_path / "zip", tmp_path / "empty")
    with pytest.raises(InputError, match="No such file"):
        extract(tmp_path / "lost", tmp_path / "new")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("busi", {".png": 1578}),
        ("ham10000", {".jpg": 10015, ".png": 10015, ".csv": 1}),
        ("brisc2025", {".jpg": 6000 + 4793, ".png": 4793}),
    ],
)
def test_real_datasets_from_their_archives(tmp_path: Path, name: str, counts: dict[str, int]) -> None:
    archive = SHARED / "data" / f"{name}.tar"
    if not archive.exists():
        pytest.skip(f"no {archive}")
    fetch(name, tmp_path, archives=[archive])
    assert Counter(path.suffix for path in tmp_path.rglob("*") if path.is_file()) == counts
    assert {path.name for path in tmp_path.iterdir()} == {part.result for part in RELEASES[name].parts}

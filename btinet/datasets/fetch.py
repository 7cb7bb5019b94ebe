"""Fetches datasets' official releases, checked against their publishers' checksums, and unpacks archives safely.

What is not downloaded automatically is described step by step, and what a person downloaded is laid out the same
way. Checksums and sizes come from the publishers when they are asked; none is written here.

What the code relies on, and where it is said (looked up in 2026; none of the servers was reached from here):

* Dataverse. ``/api/datasets/:persistentId`` lists the files, ``/api/access/datafile/ID`` gives one and understands
  Range (guides.dataverse.org, Data Access API; IQSS/dataverse#10934). A table such as HAM10000_metadata was converted
  to tab-separated values when it was deposited: the file as it was uploaded needs ``?format=original``, its size is
  ``originalFileSize`` (#11315), and ``md5`` is that of the upload, not of the conversion (#7275; #9501 tells of a file
  where it was not). Whether HAM10000_metadata is such an exception is not known.
* figshare. ``/v2/articles/ID`` lists the files with ``size`` and ``computed_md5``. The site's own addresses for
  download have answered programs with an empty 202 since January 2026 (scDiffEq/scDiffEq#110);
  ``/v2/file/download/ID`` of the API gives the same files, with Range (neuromorphs/tonic#337).
* BRISC 2025 is article 30533120 of figshare and record 17524350 of Zenodo (huggingface.co/papers/2506.14318), there
  one brisc2025.zip of 260 MB. The archive's name on figshare was not seen: the only zip is taken.
* BUSI is a plain zip on a personal page; no checksum or statement of its licence was found.
"""

from __future__ import annotations

import hashlib
import http.cookiejar
import shlex
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import httpx

from btinet.datasets.archive import check_space, extract
from btinet.errors import InputError
from btinet.storage import CHUNK, PART

DELAYS = (1, 2, 4, 8, 16)
"""Seconds to wait before each further attempt."""
TIMEOUT = httpx.Timeout(60, connect=15)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts that may be asked without TLS."""

Result = TypeVar("Result")
OnProgress = Callable[[int, int, str], object]
"""Told how many bytes of a file are here, how many there are, and the file's name."""


@dataclass(frozen=True)
class Part:
    """A published file and what it becomes."""

    file: str
    result: str
    """Its folder or file below the target."""
    holds: tuple[str, ...] = ()
    """Glob patterns of what the folder must hold; none: a plain file."""

    @property
    def stem(self) -> str:
        return Path(self.file).stem


@dataclass(frozen=True)
class Remote:
    """A file that a publisher offers; ``size`` in bytes."""

    name: str
    url: str
    size: int
    md5: str


@dataclass(frozen=True)
class Publisher:
    """A server that lists files with their checksums, and gives them."""

    server: str
    """Its base URL."""
    list_files: Callable[[httpx.Client, str], list[Remote]]
    """Asks at a base URL."""


@dataclass(frozen=True)
class Release:
    """An official release."""

    name: str
    licence: str
    parts: tuple[Part, ...]
    by_hand: tuple[str, ...]
    """How a person gets the files."""
    publisher: Publisher | None
    """None where only a person may download."""


def _dataverse(client: httpx.Client, server: str, doi: str) -> list[Remote]:
    answer = _json(client, f"{server}/api/datasets/:persistentId/?persistentId={doi}")
    remotes = []
    for entry in answer["data"]["latestVersion"]["files"]:
        file = entry["dataFile"]
        url = f"{server}/api/access/datafile/{file['id']}"
        if "originalFileFormat" in file:
            remotes.append(Remote(file["filename"], f"{url}?format=original", file["originalFileSize"], file["md5"]))
        else:
            remotes.append(Remote(file["filename"], url, file["filesize"], file["md5"]))
    return remotes


def _figshare(client: httpx.Client, server: str, article: int) -> list[Remote]:
    answer = _json(client, f"{server}/v2/articles/{article}")
    return [
        Remote(file["name"], f"{server}/v2/file/download/{file['id']}", file["size"], file["computed_md5"])
        for file in answer["files"]
    ]


RELEASES = {
    release.name: release
    for release in (
        Release(
            name="busi",
            licence="not stated by its publisher",
            parts=(Part("Dataset_BUSI.zip", "Dataset_BUSI_with_GT", ("benign", "malignant", "normal")),),
            by_hand=(
                "Read https://scholar.cu.edu.eg/?q=afahmy/pages/dataset and decide whether your use is allowed.",
                "Download https://scholar.cu.edu.eg/Dataset_BUSI.zip.",
            ),
            publisher=None,
        ),
        Release(
            name="ham10000",
            licence="CC BY-NC 4.0: not for commercial use",
            parts=(
                Part("HAM10000_images_part_1.zip", "HAM10000_images_part_1", ("*.jpg",)),
                Part("HAM10000_images_part_2.zip", "HAM10000_images_part_2", ("*.jpg",)),
                Part(
                    "HAM10000_segmentations_lesion_tschandl.zip",
                    "HAM10000_segmentations_lesion_tschandl",
                    ("*_segmentation.png",),
                ),
                Part("HAM10000_metadata.csv", "HAM10000_metadata.csv"),
            ),
            by_hand=(
                "Open https://doi.org/10.7910/DVN/DBW86T (CC BY-NC 4.0: not for commercial use).",
                "Download HAM10000_images_part_1.zip, HAM10000_images_part_2.zip, "
                "HAM10000_segmentations_lesion_tschandl.zip, and HAM10000_metadata in its original format (CSV).",
            ),
            publisher=Publisher("https://dataverse.harvard.edu", partial(_dataverse, doi="doi:10.7910/DVN/DBW86T")),
        ),
        Release(
            name="brisc2025",
            licence="CC BY 4.0",
            parts=(
                Part(
                    "brisc2025.zip",
                    "brisc2025",
                    (
                        "classification_task/train",
                        "classification_task/test",
                        "segmentation_task/train/images",
                        "segmentation_task/train/masks",
                        "segmentation_task/test/images",
                        "segmentation_task/test/masks",
                    ),
                ),
            ),
            by_hand=(
                "Download brisc2025.zip from https://doi.org/10.6084/m9.figshare.30533120, from "
                "https://doi.org/10.5281/zenodo.17524350 or, with an account, from "
                "https://www.kaggle.com/datasets/briscdataset/brisc2025 (CC BY 4.0).",
            ),
            publisher=Publisher("https://api.figshare.com", partial(_figshare, article=30533120)),
        ),
    )
}


def fetch(
    name: str,
    target: Path,
    *,
    archives: Sequence[Path] = (),
    mirror: str | None = None,
    progress: OnProgress = lambda done, total, file: None,
) -> bool:
    """Lay out a dataset's official release below ``target``; what is there already is not fetched again.

    An interrupted download is kept in ``target/.fetch-NAME`` and gone on with by the next call.

    Args:
        name: a key of ``RELEASES``.
        archives: the release's files as a person downloaded them, or archives of the laid-out dataset; with
            these, nothing is downloaded. They stay where they are.
        mirror: base URL of a server that answers as the publisher's does, instead of the publisher's own.
        progress: told how a download proceeds.

    Returns:
        False if the dataset was there before.

    Raises:
        InputError: the dataset must be downloaded by a person, and how; or it cannot be had, unpacked or stored.
    """
    if name not in RELEASES:
        raise InputError(f"no dataset {name!r} to fetch: take one of {', '.join(RELEASES)}")
    release = RELEASES[name]
    missing = [part for part in release.parts if not _is_laid_out(part, target)]
    if not missing:
        return False
    if archives:
        lay_out = partial(_take, release, archives, target)
    elif release.publisher is not None:
        publisher = replace(release.publisher, server=mirror.rstrip("/")) if mirror else release.publisher
        lay_out = partial(_download_parts, release, publisher, missing, target, progress)
    else:
        raise InputError(
            f"dataset {name!r} is not downloaded automatically, because its licence is {release.licence}:\n"
            f"{_by_hand(release, target)}"
        )
    work = target / f".fetch-{name}"
    try:
        work.mkdir(parents=True, exist_ok=True)
        lay_out(work)
        shutil.rmtree(work)
    except OSError as error:
        raise InputError(f"{target}: dataset {name!r} cannot be stored there: {error}: name another folder") from error
    finally:
        with suppress(OSError):
            work.rmdir()  # unless it holds a download to go on with
    return True


def _by_hand(release: Release, target: Path) -> str:
    """Numbered steps for a person, the last of which lays out what was downloaded."""
    files = " ".join(f"--archive {part.file}" for part in release.parts)
    command = f"btinet data fetch {release.name} --to {shlex.quote(str(target.absolute()))} {files}"
    steps = [*release.by_hand, f"Where the download is, run: {command}"]
    return "\n".join(f"  {number}. {step}" for number, step in enumerate(steps, start=1))


def _is_laid_out(part: Part, target: Path) -> bool:
    """Whether ``part`` is there; whole, if so, because it was renamed to its place."""
    path = target / part.result
    if not path.exists():
        return False
    if part.holds and not _holds(path, part):
        raise InputError(f"{path}: exists but lacks {' or '.join(part.holds)}: remove it to have it laid out again")
    return True


def _holds(folder: Path, part: Part) -> bool:
    return all(any(folder.glob(pattern)) for pattern in part.holds)


def _take(release: Release, archives: Sequence[Path], target: Path, work: Path) -> None:
    """Lay out what a person downloaded."""
    for archive in archives:
        if not archive.is_file():
            raise InputError(f"--archive: no such file: {archive}")
    for archive in archives:
        _lay_out(archive, release, target, work)
    missing = [part.file for part in release.parts if not _is_laid_out(part, target)]
    if missing:
        raise InputError(
            f"dataset {release.name!r}: {', '.join(missing)} still missing in {target}: give them, too\n"
            f"{_by_hand(release, target)}"
        )


def _lay_out(archive: Path, release: Release, target: Path, work: Path) -> None:
    """Move every part of the release that ``archive`` holds, and that is not there yet, to its place."""
    staging = work / f"unpacked-{uuid.uuid4().hex}"
    try:
        plain = [part for part in release.parts if not part.holds and archive.name.startswith(part.stem)]
        if plain and archive.suffix in ("", ".csv", ".tab"):
            staging.mkdir()
            shutil.copyfile(archive, staging / plain[0].result)
        else:
            extract(archive, staging)
            shutil.rmtree(staging / "__MACOSX", ignore_errors=True)  # Finder's twin of every file
        found = {part: _find(part, staging, _is_own(part, archive, release)) for part in release.parts}
        if not any(found.values()):
            expected = ", ".join(part.file for part in release.parts)
            raise InputError(f"{archive}: nothing of dataset {release.name!r} is in it: expected one of {expected}")
        for part, path in found.items():
            if path is not None and not _is_laid_out(part, target):
                path.rename(target / part.result)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _is_own(part: Part, archive: Path, release: Release) -> bool:
    """Whether ``archive`` is the published file of ``part``, as browsers (`name (1).zip`) or Kaggle name it."""
    return archive.name.startswith(part.stem) or len(release.parts) == 1


def _find(part: Part, unpacked: Path, is_own: bool) -> Path | None:
    """Where an unpacked archive holds ``part``: under its name at any depth or, in its own archive, under any."""
    if not part.holds:
        return next(iter(sorted(unpacked.rglob(part.result))), None)
    folders = [unpacked, *sorted(path for path in unpacked.rglob("*") if path.is_dir())]
    fitting = sorted((folder for folder in folders if _holds(folder, part)), key=lambda folder: len(folder.parts))
    named = [folder for folder in fitting if folder.name == part.result]
    return next(iter(named or fitting), None) if named or is_own else None


def _download_parts(
    release: Release, publisher: Publisher, parts: list[Part], target: Path, progress: OnProgress, work: Path
) -> None:
    try:
        with _client() as client:
            remotes = _choose(release, parts, _listing(publisher, client))
            here = sum(file.stat().st_size for file in work.iterdir() if file.is_file())
            sizes = [remote.size for remote in remotes]
            # an archive is removed once it is unpacked; images are compressed already and unpack to about its size
            check_space(work, sum(sizes) + max(sizes) - here, f"dataset {release.name!r}")
            for part, remote in zip(parts, remotes, strict=True):
                path = work / part.file
                _download(client, remote, path, progress)
                _lay_out(path, release, target, work)
                path.unlink()
    except InputError as error:
        raise InputError(f"{error}\nor get it by hand:\n{_by_hand(release, target)}") from error


def _client() -> httpx.Client:
    no_cookies = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    return httpx.Client(
        # compressed in transit, a file could not be gone on with from the middle
        headers={"User-Agent": f"btinet/{version('btinet')}", "Accept-Encoding": "identity"},
        cookies=no_cookies,
        follow_redirects=True,  # both publishers redirect to short-lived addresses in object storage
        timeout=TIMEOUT,
        event_hooks={"request": [_check_scheme]},
    )


def _check_scheme(request: httpx.Request) -> None:
    """Called before every request, those that follow a redirect included."""
    url = request.url
    if url.scheme != "https" and not (url.scheme == "http" and url.host in LOOPBACK):
        raise InputError(f"{url}: only https is allowed (http on this machine only): name a server that offers it")


def _listing(publisher: Publisher, client: httpx.Client) -> list[Remote]:
    try:
        return publisher.list_files(client, publisher.server)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{publisher.server}: unexpected list of files ({error!r}): its API may have changed"
        ) from error


def _choose(release: Release, parts: list[Part], listed: list[Remote]) -> list[Remote]:
    """The published file of every part, by its name without the ending, which Dataverse changes."""
    chosen = []
    for part in parts:
        matching = [remote for remote in listed if Path(remote.name).stem == part.stem]
        if len(release.parts) == 1 and not matching:
            matching = [remote for remote in listed if remote.name.endswith(".zip")]
        if len(matching) != 1:
            names = ", ".join(remote.name for remote in listed) or "none"
            raise InputError(f"dataset {release.name!r}: not one {part.file} among its publisher's files ({names})")
        chosen += matching
    return chosen


def _json(client: httpx.Client, url: str) -> Any:
    def get() -> httpx.Response:
        response = client.get(url)
        _check_status(response, url, 200)
        return response

    response = _patiently(get, url)
    try:
        return response.json()
    except ValueError as error:
        raise InputError(f"{url}: its answer is not JSON: open it in a browser to see what it says") from error


class _PassingError(Exception):
    """A fault that may be gone at the next attempt."""


def _patiently(attempt: Callable[[], Result], url: str) -> Result:
    """Repeat ``attempt`` while it fails in a way that may pass, a bounded number of times."""
    delays = iter(DELAYS)
    while True:
        try:
            return attempt()
        except (httpx.TransportError, _PassingError) as error:
            delay = next(delays, None)
            if delay is None:
                reason = str(error) or type(error).__name__
                remedy = "run the same command again later, it goes on from what is here"
                raise InputError(f"{url}: {reason}, in {len(DELAYS) + 1} attempts: {remedy}") from error
            time.sleep(delay)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise InputError(f"{url}: {error}") from error


def _check_status(response: httpx.Response, url: str, *expected: int) -> None:
    status = f"HTTP {response.status_code} {response.reason_phrase}"
    if response.status_code == 429 or response.status_code >= 500:
        raise _PassingError(status)
    if response.status_code not in expected:
        raise InputError(f"{url}: {status}: the server does not give this file to a program, or no longer has it")


def _download(client: httpx.Client, remote: Remote, path: Path, progress: OnProgress) -> None:
    """Make ``path`` the verified copy of ``remote``, from whatever is there of it."""
    if _md5(path).hexdigest() == remote.md5:
        return
    part = path.with_name(path.name + PART)
    digest = _patiently(lambda: _continue(client, remote, part, progress), remote.url)
    if digest != remote.md5:
        part.unlink()
        raise InputError(
            f"{remote.url}: what came has MD5 {digest}, its publisher says {remote.md5}; it was removed: try again"
        )
    part.replace(path)


def _continue(client: httpx.Client, remote: Remote, part: Path, progress: OnProgress) -> str:
    """Add to ``part`` what it lacks, in one request; returns the MD5 of the whole."""
    digest = _md5(part)
    done = part.stat().st_size if part.exists() else 0
    if done and done >= remote.size:
        return digest.hexdigest()
    headers = {"Range": f"bytes={done}-"} if done else {}
    with client.stream("GET", remote.url, headers=headers) as response:
        _check_status(response, remote.url, 200, *((206, 416) if done else ()))
        rest = f"bytes {done}-{remote.size - 1}/{remote.size}"
        if response.status_code != 200 and response.headers.get("Content-Range") != rest:
            part.unlink()
            raise _PassingError(f"HTTP {response.status_code} with another range than was asked for")
        if response.status_code == 200:  # the server gives the whole file again
            done = 0
            digest = hashlib.md5(usedforsecurity=False)
        with part.open("ab" if done else "wb") as stream:
            for chunk in response.iter_raw():
                stream.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress(done, remote.size, remote.name)
                if done > remote.size:
                    break  # not this file: the checksum will tell
    if done < remote.size:
        raise _PassingError(f"the answer ended after {done} of {remote.size} bytes")
    return digest.hexdigest()


def _md5(path: Path) -> hashlib._Hash:
    """Of what is there; of nothing where there is no file. MD5 is what the publishers offer."""
    digest = hashlib.md5(usedforsecurity=False)
    if path.exists():
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    return digest

"""A dataset as one file: unpacking what others made, safely, and packing, reproducibly."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

from btinet.errors import InputError
from btinet.storage import PART

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)
"""As what zipfile and tarfile report broken, encrypted and unsupported archives."""


def extract(archive: Path, target: Path) -> None:
    """Unpack a zip or tar archive (of any compression) into a new folder ``target``, whole or not at all.

    Raises:
        InputError: the archive is damaged, would write outside ``target``, holds symbolic links or devices, or
            is larger than the free disk space; or ``target`` holds something.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target}: exists: remove it or name another folder to unpack {archive} into")
    staging = target.with_name(f"{target.name}.{uuid.uuid4().hex}{PART}")
    try:
        staging.mkdir(parents=True)
        if tarfile.is_tarfile(archive):
            _extract_tar(archive, staging)
        elif zipfile.is_zipfile(archive):
            _extract_zip(archive, staging)
        else:
            raise InputError(f"{archive}: is neither a zip nor a tar archive, or is cut short: get this file again")
        staging.replace(target)
    except DAMAGED as error:
        raise InputError(f"{archive}: is damaged or of an unsupported kind ({error}): get this file again") from error
    except OSError as error:
        raise InputError(f"{archive}: cannot be unpacked into {target}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _extract_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was made on Windows
            _check_member(archive, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        # zipfile stops at a member's declared size, so that the declared sizes bound what is written
        check_space(folder, sum(member.file_size for member in members), f"what {archive} holds")
        opened.extractall(folder)


def _extract_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as opened:
        members = opened.getmembers()
        for member in members:
            # symbolic links are refused wherever they point: tarfile's filter misjudged some until Python 3.11.13
            _check_member(archive, member.name, member.isreg() or member.isdir() or member.islnk())
            if member.islnk():
                _check_member(archive, member.linkname, True)
        check_space(folder, sum(member.size for member in members), f"what {archive} holds")
        opened.extractall(folder, members, filter="data")


def _check_member(archive: Path, name: str, is_plain: bool) -> None:
    path = PureWindowsPath(name)  # sees the absolute paths and separators of both systems
    if path.anchor or ".." in path.parts:
        raise InputError(f"{archive}: its member {name!r} lies outside the folder to unpack into: do not trust it")
    if not is_plain:
        raise InputError(f"{archive}: its member {name!r} is a link or device: pack the files themselves (tar -h)")


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse what ``folder``'s disk has no room for; ``needed`` in bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        sizes = f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise InputError(f"{folder}: {what} needs {sizes}: make room or name a folder on another disk")


def pack(folder: Path, archive: Path, on_progress: Callable[[int, int], None] | None = None) -> None:
    """Pack a folder's files into a tar archive that depends on their names and content alone.

    Args:
        folder: what to pack; the archive holds what lies in it, without the folder itself, and what links lead to in
            place of them. Hidden files stay out.
        archive: the .tar file to write, atomically.
        on_progress: called with (files done, files in all).

    Raises:
        InputError: there is no such folder, or it holds no files, a folder that cannot be read or a broken link.
    """
    places = os.walk(folder, onerror=_refuse, followlinks=True)
    paths = [Path(place, name) for place, _, names in places for name in names]
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    files = {name: path for name, path in files.items() if not any(part.startswith(".") for part in Path(name).parts)}
    if broken := [path for path in files.values() if not path.is_file()]:
        raise InputError(f"{broken[0]}: is no file, or a link to none: put the file there, or remove it")
    files = {name: path for name, path in files.items() if path.resolve() != archive.resolve()}
    if not files:
        raise InputError(f"{folder}: no files to pack: name the folder that holds the dataset's layout")
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(f"{archive.name}{PART}")
    try:
        with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
            for done, name in enumerate(sorted(files), start=1):
                entry = tarfile.TarInfo(name)  # no owner, no times, one mode
                entry.size = files[name].stat().st_size
                entry.mode = 0o644
                with files[name].open("rb") as stream:
                    tar.addfile(entry, stream)
                if on_progress is not None:
                    on_progress(done, len(files))
        part.replace(archive)
    finally:
        part.unlink(missing_ok=True)


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be packed: {error.strerror}: name a folder that can be read") from error

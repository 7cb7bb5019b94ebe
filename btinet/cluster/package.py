"""What is sent to a cluster: this package's source, by an allow-list of file types, and nothing else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import btinet

SENT = (".py", ".j2", ".css", ".js", ".yaml")
"""Suffixes of the package's files that are sent: code, what the pages are made of, reference tables."""


class Package(NamedTuple):
    """A copy of the package with the files that are sent."""

    folder: Path
    files: int
    bytes: int

    def __str__(self) -> str:
        return f"the package btinet ({self.files} files, {self.bytes / 1024:.0f} KiB: {', '.join(SENT)} only)"


@contextmanager
def package_to_send() -> Iterator[Package]:
    """Copy what is sent into a temporary folder, for the duration of the block."""
    source = Path(btinet.__file__).parent
    files = [file for file in sorted(source.rglob("*")) if file.suffix in SENT]
    with tempfile.TemporaryDirectory(prefix="btinet-package-") as scratch:
        target = Path(scratch) / source.name
        for file in files:
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        yield Package(target, len(files), sum(file.stat().st_size for file in files))

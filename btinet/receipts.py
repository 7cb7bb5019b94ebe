"""Receipts: the small JSON a finished step leaves, and the rule by which it is not done again.

A step whose receipt is there, was made from the same inputs, and whose outputs are in place is a no-op. Sizes are
compared when deciding that; hashes are compared when an output is read.
"""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from btinet.config import Strict
from btinet.errors import InputError
from btinet.storage import Storage, file_sha256

PACKAGES = ("btinet", "torch", "timm", "numpy", "pyarrow", "scikit-learn", "ray", "prefect", "dvc")


class Output(Strict):
    sha256: str
    bytes: int


class Receipt(Strict):
    """What a finished step did."""

    step: str
    inputs: dict[str, Any]
    """Everything the outputs follow from: settings and hashes."""
    outputs: dict[str, Output]
    """By path relative to the storage root."""
    metrics: dict[str, float | int | str | None]
    environment: dict[str, str]
    finished: str
    wall_seconds: float
    """A stage's epochs took so long, whichever processes did them; another step took so long from beginning to end."""

    def __str__(self) -> str:
        values = {name: f"{value:.3f}" if isinstance(value, float) else value for name, value in self.metrics.items()}
        words = ", ".join(f"{name} {value}" for name, value in values.items())
        return f"{self.step} done in {self.wall_seconds:.0f} s: {words}"


def write_receipt(
    file: Storage,
    root: Storage,
    step: str,
    inputs: dict[str, Any],
    outputs: list[Storage],
    metrics: dict[str, float | int | str | None],
    seconds: float,
    device: str = "cpu",
) -> Receipt:
    """Hash the outputs and write the receipt: the step is finished from here on.

    Args:
        file: where the receipt goes.
        root: storage root, below which the outputs lie.
        seconds: what it took.
    """
    receipt = Receipt(
        step=step,
        inputs=inputs,
        outputs={relative(output, root): Output(sha256=output.sha256(), bytes=output.size()) for output in outputs},
        metrics=metrics,
        environment=environment() | {"device": device},
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        wall_seconds=round(seconds, 3),
    )
    file.write_json(receipt.model_dump())
    return receipt


def read_receipt(file: Storage) -> Receipt | None:
    """The receipt in ``file``; None where there is none.

    Raises:
        InputError: the file is not a receipt.
    """
    if not file.exists():
        return None
    try:
        return Receipt.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise InputError(f"{file}: not a receipt; remove it and run again: {error}") from error


def valid_receipt(file: Storage, root: Storage, inputs: dict[str, Any]) -> Receipt | None:
    """The receipt, if the step was done with these inputs and its outputs are in place."""
    receipt = read_receipt(file)
    if receipt is None or receipt.inputs != inputs:
        return None
    for path, output in receipt.outputs.items():
        found = root / path
        if not found.exists() or found.size() != output.bytes:
            return None
    return receipt


def fetch_output(receipt: Receipt, root: Storage, name: str, target: Path) -> Path:
    """Download the output whose file name is ``name`` and check its hash.

    Raises:
        InputError: the file's content is not what the receipt says.
    """
    path, expected = next((path, output) for path, output in receipt.outputs.items() if path.endswith(f"/{name}"))
    local = target / name
    (root / path).download(local)
    if file_sha256(local) != expected.sha256:
        raise InputError(f"{root / path}: its content does not match its receipt; remove it and run again")
    return local


def relative(file: Storage, root: Storage) -> str:
    return file.path.removeprefix(root.path).lstrip("/")


@cache
def environment() -> dict[str, str]:
    """Versions and machine, for the record."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = _git_commit()
    return found | ({"git": commit} if commit else {})


def _git_commit() -> str | None:
    """The checkout's commit, with ``+changes`` when the tree differs; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", str(here)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None

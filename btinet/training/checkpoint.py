"""Resumable training state in storage: a torch file an epoch, each with a marker that holds its hash.

To pack a state makes bytes of it, so that training may go on and change it while they are written. ``epoch-0003.pt`` is
written first and ``epoch-0003.json`` after it: a file without its marker is unfinished and is
never read. The last two are kept, so that a damaged one costs an epoch. Files are loaded with ``weights_only``.
"""

from __future__ import annotations

import hashlib
import io
import logging
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from btinet.errors import InputError
from btinet.storage import Storage

log = logging.getLogger(__name__)

KEEP = 2


def pack(state: dict[str, Any]) -> bytes:
    """A training state as a torch file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


class PackedBest(NamedTuple):
    """The weights of an epoch as a safetensors file."""

    entry: dict[str, str]
    """What :meth:`Checkpoints.load_best` needs to find them: file and sha256."""
    data: bytes


def pack_best(epoch: int, weights: dict[str, Tensor]) -> PackedBest:
    data = save({name: tensor.contiguous() for name, tensor in weights.items()})
    entry = {"file": f"best-{epoch:04d}.safetensors", "sha256": hashlib.sha256(data).hexdigest()}
    return PackedBest(entry, data)


class Checkpoints:
    """The checkpoints of one stage of one run, in ``folder``."""

    def __init__(self, folder: Storage) -> None:
        self.folder = folder

    def write(self, epoch: int, data: bytes) -> None:
        """Write the packed state at the end of ``epoch`` and drop all but the last KEEP."""
        name = f"epoch-{epoch:04d}"
        (self.folder / f"{name}.pt").write_bytes(data)
        (self.folder / f"{name}.json").write_json({"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)})
        for marker in self._markers()[:-KEEP]:
            marker.remove()
            (self.folder / marker.name.replace(".json", ".pt")).remove()

    def latest(self, device: torch.device) -> dict[str, Any] | None:
        """The newest whole checkpoint; None where training starts afresh. Damaged ones are named in the log."""
        for marker in reversed(self._markers()):
            file = self.folder / marker.name.replace(".json", ".pt")
            data = file.read_bytes() if file.exists() else b""
            if hashlib.sha256(data).hexdigest() == marker.read_json()["sha256"]:
                state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
                return state
            log.warning("%s is damaged (its hash differs from its marker's): going back one checkpoint", file)
        return None

    def write_best(self, best: PackedBest) -> None:
        """Write the weights of the best epoch so far."""
        (self.folder / best.entry["file"]).write_bytes(best.data)

    def load_best(self, entry: dict[str, Any]) -> dict[str, Tensor]:
        """The weights that ``PackedBest.entry`` was made of.

        Raises:
            InputError: the file holds something else.
        """
        file = self.folder / entry["file"]
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise InputError(f"{file}: its content does not match the checkpoint; remove {self.folder} and train again")
        return load(data)

    def drop_best(self, keep: set[str]) -> None:
        """Remove best weights that no kept checkpoint refers to."""
        for file in self.folder.children():
            if file.name.startswith("best-") and file.name not in keep:
                file.remove()

    def remove(self) -> None:
        """Remove them all."""
        self.folder.remove()

    def _markers(self) -> list[Storage]:
        return [
            file for file in self.folder.children() if file.name.startswith("epoch-") and file.name.endswith(".json")
        ]

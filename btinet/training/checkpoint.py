"""Resumable training state in storage: a torch file an epoch, each with a marker that holds its hash.

``epoch-0003.pt`` is written first and ``epoch-0003.json`` after it: a file without its marker is unfinished and is
never read. The last two are kept, so that a damaged one costs an epoch. Files are loaded with ``weights_only``.
"""

from __future__ import annotations

import hashlib
import io
import logging
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from btinet.errors import InputError
from btinet.storage import Storage

log = logging.getLogger(__name__)

KEEP = 2


class Checkpoints:
    """The checkpoints of one stage of one run, in ``folder``."""

    def __init__(self, folder: Storage) -> None:
        self.folder = folder

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Write the state at the end of ``epoch`` and drop all but the last KEEP."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
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

    def save_best(self, epoch: int, weights: dict[str, Tensor]) -> dict[str, Any]:
        """Write the weights of the best epoch so far; returns what :meth:`load_best` needs to find them."""
        data = save({name: tensor.contiguous() for name, tensor in weights.items()})
        name = f"best-{epoch:04d}.safetensors"
        (self.folder / name).write_bytes(data)
        return {"file": name, "sha256": hashlib.sha256(data).hexdigest()}

    def load_best(self, best: dict[str, Any]) -> dict[str, Tensor]:
        file = self.folder / best["file"]
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != best["sha256"]:
            raise InputError(f"{file}: its content does not match the checkpoint; remove {self.folder} and train again")
        return load(data)

    def drop_best(self, keep: set[str]) -> None:
        """Remove best weights that no kept checkpoint refers to."""
        for file in self.folder.children():
            if file.name.startswith("best-") and file.name not in keep:
                file.remove()

    def _markers(self) -> list[Storage]:
        return [
            file for file in self.folder.children() if file.name.startswith("epoch-") and file.name.endswith(".json")
        ]

"""Between maps, which may be of a lower precision, and what is pooled of them, which is float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def in_float32(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which layers compute in float32 whatever the model's precision."""
    return torch.autocast(device.type, enabled=False) if device.type in ("cpu", "cuda") else nullcontext()


def summing(maps: Tensor) -> torch.dtype:
    """What the maps' sums are taken in: float32, or double for double."""
    return torch.promote_types(maps.dtype, torch.float32)


def pool(maps: Tensor) -> Tensor:
    """Global average: [B, C, H, W] -> float32 [B, C]."""
    return maps.mean((2, 3), dtype=summing(maps))


def modulate(maps: Tensor, scale: Tensor) -> Tensor:
    """Scale each channel: [B, C, H, W] and float32 [B, C] -> maps of the same precision."""
    return maps * scale[:, :, None, None].to(maps.dtype)

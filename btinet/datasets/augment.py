"""Training augmentation: flips and small rotations (paper App. B), batched, on the batch's device.

What happens to a sample depends on (seed, epoch, row) alone: not on the batch it is in, the order, the number
of workers, or whether training was resumed.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from btinet.config import TrainSettings


def augment(
    images: Tensor, masks: Tensor, rows: NDArray[np.integer], seed: int, epoch: int, settings: TrainSettings
) -> tuple[Tensor, Tensor]:
    """Flip and rotate each image together with its mask.

    Rotation is about the centre; what it brings in from outside is the image reflected about its border
    pixels (reflect-101). Images are interpolated bilinearly, masks by the nearest pixel.

    Args:
        images: float [B, C, H, W].
        masks: float [B, 1, H, W].
        rows: row numbers [B] of the samples in the prepared dataset.
        seed: the run's seed, >= 0.
        epoch: >= 0.

    Returns:
        Images and masks of the same shapes, types and memory formats.
    """
    flip_x, flip_y, angle = (
        torch.from_numpy(values).to(images.device, non_blocking=True)
        for values in _parameters(rows, seed, epoch, settings)
    )
    grid = _rotation_grid(angle, images.shape[-2], images.shape[-1]).to(images.dtype)
    rotated = angle != 0

    def transform(x: Tensor, mode: str) -> Tensor:
        x = torch.where(_per_sample(flip_x), x.flip(-1), x)
        x = torch.where(_per_sample(flip_y), x.flip(-2), x)
        turned = F.grid_sample(x, grid, mode=mode, padding_mode="reflection", align_corners=True)
        return torch.where(_per_sample(rotated), turned, x)  # unrotated samples keep their exact values

    is_channels_last = images.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if is_channels_last else torch.contiguous_format
    return (
        transform(images, "bilinear").contiguous(memory_format=memory_format),
        transform(masks, "nearest").contiguous(memory_format=memory_format),
    )


def _parameters(
    rows: NDArray[np.integer], seed: int, epoch: int, settings: TrainSettings
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float32]]:
    """Per sample [B]: flip left-right, flip up-down, angle of rotation in radians (0: none)."""
    draws = np.stack([_uniforms(seed, epoch, int(row)) for row in rows])
    flips = draws[:, :2] < settings.flip_probability
    is_rotated = draws[:, 2] < settings.rotate_probability
    degrees = settings.rotate_degrees * (2 * draws[:, 3] - 1)
    return flips[:, 0], flips[:, 1], np.where(is_rotated, np.deg2rad(degrees), 0).astype(np.float32)


def _uniforms(seed: int, epoch: int, row: int) -> NDArray[np.float64]:
    """Four numbers in [0, 1). ``row`` is the highest word of the counter, so the streams never meet."""
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([0, 0, 0, row], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).random(4)


def _rotation_grid(angle: Tensor, height: int, width: int) -> Tensor:
    """Where each output pixel comes from, in grid_sample's coordinates (align_corners): [B, H, W, 2]."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    aspect = (height - 1) / (width - 1)  # the coordinates are relative to each side; the rotation is in pixels
    theta = torch.stack([cos, -sin * aspect, zero, sin / aspect, cos, zero], dim=1).view(-1, 2, 3)
    return F.affine_grid(theta, [len(angle), 1, height, width], align_corners=True)


def _per_sample(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)

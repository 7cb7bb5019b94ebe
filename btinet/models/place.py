"""How a model is put on a device, so that it computes there as fast as it can."""

from __future__ import annotations

import ctypes
import platform
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

import btinet.torchvision_compat  # noqa: F401  isort: skip  (must come before timm)
from timm.layers import BatchNormAct2d
from timm.models import EfficientNet
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual

from btinet.errors import InputError
from btinet.models.method import Method

M = TypeVar("M", bound=nn.Module)
N = TypeVar("N", bound=Method)

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Numbers of glibc's mallopt(3)."""

IN_ORDER = (nn.Sequential, EfficientNet, DepthwiseSeparableConv, InvertedResidual)
"""Modules that apply each convolution to what BatchNorm follows it among their children."""


def device_named(name: str | None) -> torch.device:
    """What ``--device`` names; without a name a GPU if there is one.

    Raises:
        InputError: there is no such device here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch is made without CUDA
        reason = str(error).partition("\n")[0]
        raise InputError(f"--device {name}: {reason}: name one that is here, such as cpu, or none") from error
    return device


def place(module: M, device: torch.device) -> M:
    """Move a module to a device, in the layout that its convolutions are fastest in."""
    if device.type == "cpu":
        keep_freed_memory()
    return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def keep_freed_memory() -> None:
    """Have this process keep what it frees, where its C library is glibc.

    The C library else gives every large tensor back to the system and fetches it anew, zeroed, page by page: a sixth
    of a training step's time. What the process holds stays at its peak.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_TOP_PAD, 64 * 2**20)


def for_inference(model: N) -> N:
    """Change a model, which can then be trained no more, to compute the same function in fewer passes.

    BatchNorm, fixed in evaluation mode, becomes part of the convolution before it; and the weights of convolutions are
    kept in the precision that they are used in.

    Args:
        model: in evaluation mode.
    """
    for module in [module for module in model.modules() if isinstance(module, IN_ORDER)]:
        for (_, convolution), (after, norm) in pairwise(list(module.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None and norm.running_var is not None
                fused = fuse_conv_bn_weights(
                    convolution.weight,
                    convolution.bias,
                    norm.running_mean,
                    norm.running_var,
                    norm.eps,
                    norm.weight,
                    norm.bias,
                )
                convolution.weight, convolution.bias = fused
                setattr(module, after, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
    if model.precision == "bfloat16":
        for layer in model.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                layer.bfloat16()
    return model

"""The shared encoder: a timm EfficientNet read at the paper's five taps."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import btinet.torchvision_compat  # noqa: F401  isort: skip  (must come before timm)
import timm
from timm.layers import Conv2dSame

from btinet.errors import InputError
from btinet.models.pooled import in_float32

log = logging.getLogger(__name__)

TAP_STAGES = (1, 2, 3, 5)
"""Stages whose first block's expansion activation is tapped; the fifth tap is the network's last activation.

These are Keras' ``block{2,3,4,6}a_expand_activation`` and ``top_activation``. timm's own ``features_only`` gives
other tensors whatever its ``feature_location``.
"""

FAMILIES = ("tf_efficientnet_b", "efficientnet_b", "tinynet_")


class Encoder(nn.Module):
    """EfficientNet features at strides 2, 4, 8, 16 and 32.

    ``tf_efficientnet_b4`` at 224x224 gives 144@112, 192@56, 336@28, 960@14 and 1792@7.

    Args:
        name: a timm EfficientNet of the original seven stages, e.g. ``tf_efficientnet_b4`` or ``tinynet_e``.
        drop_path: stochastic depth rate of the last block (linearly increasing from 0).
    """

    net: Any  # timm's modules have no types
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, drop_path: float = 0.0) -> None:
        super().__init__()
        check_encoder(name)
        self.net = timm.create_model(name, pretrained=False, num_classes=0, drop_path_rate=drop_path)
        for layer in self.net.modules():
            if isinstance(layer, nn.Conv2d) and layer.groups > 1 and (layer.kernel_size[0] > 3 or layer.stride[0] > 1):
                layer.__class__ = DepthwiseSame if isinstance(layer, Conv2dSame) else Depthwise
        first_blocks = [self.net.blocks[stage][0] for stage in TAP_STAGES]
        self.channels = [block.conv_pw.out_channels for block in first_blocks] + [self.net.conv_head.out_channels]
        mean, std = (torch.tensor(self.net.default_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """RGB images [B, 3, S, S] in [0, 1] -> the five taps, fine to coarse."""
        net = self.net
        x = net.bn1(net.conv_stem((images - self.mean) / self.std))
        taps = []
        for index, stage in enumerate(net.blocks):
            if index in TAP_STAGES:
                x, tap = expand_and_finish(stage[0], x)
                taps.append(tap)
                x = stage[1:](x)
            else:
                x = stage(x)
        taps.append(net.bn2(net.conv_head(x)))
        return taps

    def load_pretrained(self, path: Path) -> None:
        """Load ImageNet weights under timm's names from a safetensors file.

        Tensors of the classifier are ignored. Tensors that the file lacks keep their random start, and are named
        in the log; a file that lacks more than a tenth of them, or holds foreign ones, is refused.

        Raises:
            InputError: the file is not safetensors or does not fit this encoder.
        """
        weights = read_weights(path)
        own = self.net.state_dict()
        given = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}
        wrong = [name for name, tensor in given.items() if name not in own or tensor.shape != own[name].shape]
        missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
        if wrong or len(missing) > len(own) // 10:
            raise InputError(
                f"{path}: these are not weights of this encoder: {len(wrong)} tensors do not fit "
                f"(first: {wrong[:3]}), {len(missing)} are missing; the file must use timm's names and shapes"
            )
        if missing:
            log.warning("%s has no %s: they start from random values", path, ", ".join(missing))
        self.net.load_state_dict(given, strict=False)


def check_encoder(name: str) -> None:
    """Check that there is such an encoder.

    Raises:
        InputError: timm has none of this name, or not of these families.
    """
    if not name.startswith(FAMILIES) or not timm.is_model(name):
        choices = ", ".join(f"{family}*" for family in FAMILIES)
        raise InputError(f"model.encoder: {name!r} is not one of timm's {choices}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        InputError: it is none.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error}); see README, 'ImageNet weights'") from error


class InFloat32:
    """A convolution that computes in float32 where gradients in bfloat16 take a CPU several times as long."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16 or x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)  # type: ignore[misc]
        with in_float32(x.device):
            return super().forward(x.float()).to(x.dtype)  # type: ignore[misc]


class Depthwise(InFloat32, nn.Conv2d):
    """Of timm's blocks, with a kernel of 5x5 or a stride of 2."""


class DepthwiseSame(InFloat32, Conv2dSame):
    """The same with TensorFlow's padding."""


def expand_and_finish(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """An inverted-residual block that changes resolution (so has no shortcut), and its expansion activation."""
    tap = block.bn1(block.conv_pw(x))
    return block.bn3(block.conv_pwl(block.se(block.aa(block.bn2(block.conv_dw(tap)))))), tap

"""Methods by name. A new method is one file and one line here."""

from __future__ import annotations

from pathlib import Path

from btinet.config import ModelSettings
from btinet.errors import InputError
from btinet.models.baselines.attention_unet import AttentionUNet
from btinet.models.baselines.densemtl import DenseMTL
from btinet.models.baselines.dynashare import DynaShare
from btinet.models.baselines.invpt import InvPT
from btinet.models.baselines.missformer import MISSFormer
from btinet.models.baselines.mtan import MTAN
from btinet.models.baselines.mtanet import MTANet
from btinet.models.baselines.mti_net import MTINet
from btinet.models.baselines.mtl_oca import MTLOCA
from btinet.models.baselines.pad_net import PADNet
from btinet.models.baselines.swin_unet import SwinUNet
from btinet.models.baselines.taskprompter import TaskPrompter
from btinet.models.baselines.transunet import TransUNet
from btinet.models.baselines.unet import UNet
from btinet.models.baselines.unetpp import UNetPP
from btinet.models.btinet import BTINet
from btinet.models.method import Method

METHODS: dict[str, type[Method]] = {
    "btinet": BTINet,
    # segmentation only (Table 6)
    "unet": UNet,
    "attention-unet": AttentionUNet,
    "unetpp": UNetPP,
    "transunet": TransUNet,
    "swin-unet": SwinUNet,
    "missformer": MISSFormer,
    # joint (Table 5)
    "mtan": MTAN,
    "mtanet": MTANet,
    "mtl-oca": MTLOCA,
    "mti-net": MTINet,
    "densemtl": DenseMTL,
    # joint, related work
    "pad-net": PADNet,
    "invpt": InvPT,
    "taskprompter": TaskPrompter,
    "dynashare": DynaShare,
}


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        InputError: no method has this name.
    """
    if name not in METHODS:
        raise InputError(f"methods: {name!r} is unknown; choose from {', '.join(METHODS)}")
    return METHODS[name]


TRANSFORMERS = {name for method in METHODS.values() if (name := method.transformer) is not None}
"""Pretrained models that some method's transformer layers can start from."""


def build(
    method: str,
    settings: ModelSettings,
    classes: int,
    weights: Path | None = None,
    transformer_weights: Path | None = None,
) -> Method:
    """A freshly initialised model.

    Args:
        method: a name in METHODS.
        settings: architecture.
        classes: number of classes.
        weights: ImageNet weights of the shared encoder, a safetensors file; None where trained weights will follow,
            where training starts from random ones, and for methods with an encoder of their own.
        transformer_weights: ImageNet weights of the method's ``transformer``, likewise.
    """
    model = method_class(method)(settings, classes)
    if weights is not None:
        model.encoder.load_pretrained(weights)
    if transformer_weights is not None:
        model.load_transformer(transformer_weights)
    return model

"""Methods by name. A new method is one file and one line here.

A method's module, and with it torch and timm, is loaded when the method is asked for.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from btinet.config import ModelSettings
from btinet.errors import InputError

if TYPE_CHECKING:
    from btinet.models.method import Method

METHODS = {
    "btinet": "btinet:BTINet",
    # segmentation only (Table 6)
    "unet": "baselines.unet:UNet",
    "attention-unet": "baselines.attention_unet:AttentionUNet",
    "unetpp": "baselines.unetpp:UNetPP",
    "transunet": "baselines.transunet:TransUNet",
    "swin-unet": "baselines.swin_unet:SwinUNet",
    "missformer": "baselines.missformer:MISSFormer",
    # joint (Table 5)
    "mtan": "baselines.mtan:MTAN",
    "mtanet": "baselines.mtanet:MTANet",
    "mtl-oca": "baselines.mtl_oca:MTLOCA",
    "mti-net": "baselines.mti_net:MTINet",
    "densemtl": "baselines.densemtl:DenseMTL",
    # joint, related work
    "pad-net": "baselines.pad_net:PADNet",
    "invpt": "baselines.invpt:InvPT",
    "taskprompter": "baselines.taskprompter:TaskPrompter",
    "dynashare": "baselines.dynashare:DynaShare",
}
"""Each method's module in this package, and its class there."""


def check_method(name: str) -> None:
    """Check that there is such a method.

    Raises:
        InputError: no method has this name.
    """
    if name not in METHODS:
        raise InputError(f"methods: {name!r} is unknown; choose from {', '.join(METHODS)}")


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        InputError: no method has this name.
    """
    check_method(name)
    found: type[Method] = resolve_name(f"{__package__}.{METHODS[name]}")
    return found


def transformers() -> set[str]:
    """Pretrained models that some method's transformer layers can start from."""
    return {name for method in METHODS if (name := method_class(method).transformer) is not None}


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

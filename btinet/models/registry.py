"""Methods by name. A new method is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from btinet.config import ModelSettings
from btinet.errors import InputError
from btinet.models.btinet import BTINet

METHODS: dict[str, Callable[[ModelSettings, int], BTINet]] = {
    "btinet": BTINet,
}


def build(method: str, settings: ModelSettings, classes: int, weights: Path | None = None) -> BTINet:
    """A freshly initialised model.

    Args:
        method: a name in METHODS.
        settings: architecture.
        classes: number of classes.
        weights: ImageNet weights of the encoder, a safetensors file; None where trained weights will follow, or
            where training starts from random ones.
    """
    if method not in METHODS:
        raise InputError(f"methods: {method!r} is unknown; choose from {', '.join(METHODS)}")
    model = METHODS[method](settings, classes)
    if weights is not None:
        model.encoder.load_pretrained(weights)
    return model

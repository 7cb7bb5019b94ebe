"""Monte Carlo dropout: the reference that the gate's single-pass signals are compared with (notes B3, B4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from btinet.metrics import binary_entropy, entropy, overlap
from btinet.models.method import Method


class McDropout(NamedTuple):
    """Uncertainty from T stochastic passes; entropies in nats, segmentation values averaged over pixels; each [B]."""

    seg_var: Tensor
    """Variance over passes of the lesion probability."""
    seg_entropy: Tensor
    """Entropy of the mean probability."""
    seg_mi: Tensor
    """Mutual information: entropy of the mean less mean of the entropies."""
    seg_var_fg: Tensor
    """As seg_var, over the pixels that the mean map calls lesion; 0 where there are none."""
    seg_var_map: Tensor
    """seg_var before it is averaged [B, 1, S, S]."""
    iou: Tensor
    """IoU of the mean map thresholded at 0.5."""
    clf_entropy: Tensor | None
    """None, as all that follows, where the method does not classify."""
    clf_mi: Tensor | None
    clf_var: Tensor | None
    """Variance over passes, averaged over classes."""
    probs: Tensor | None
    """Mean class probabilities [B, K]."""


def dropout_layers(model: Method, scope: str) -> list[nn.Dropout]:
    """The layers that Monte Carlo dropout switches on; a method may have none.

    Args:
        scope: ``all`` for decoder and classification head, ``head`` for the latter (``clf_head``) alone.
    """
    prefix = "" if scope == "all" else "clf_head."
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and module.p > 0 and name.startswith(prefix)
    ]


@contextmanager
def active_dropout(model: Method, scope: str) -> Iterator[None]:
    """Switch on dropout (never stochastic depth, never BatchNorm's batch statistics)."""
    hooks = [layer.register_forward_hook(_drop) for layer in dropout_layers(model, scope)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _drop(layer: nn.Dropout, _: object, output: Tensor) -> Tensor:
    """Dropout, of a layer that is in evaluation mode and so has let everything through.

    torch's own draws its mask in a way that takes some kinds of CPU three times as long and differs between kinds.
    """
    kept = torch.rand_like(output, dtype=torch.float32) >= layer.p
    return output * kept.to(output.dtype).div_(1 - layer.p)


@torch.no_grad()
def mc_dropout(model: Method, features: list[Tensor], masks: Tensor, passes: int, scope: str) -> McDropout:
    """Decode the same encoder features ``passes`` times with dropout active; draws from torch's global generator.

    Args:
        model: in evaluation mode.
        features: what ``model.features`` returned; nothing before them is random.
        masks: ground truth [B, 1, S, S].
        passes: T >= 1.
    """
    mean = squares = total_entropy = torch.zeros_like(masks)
    clf_passes = []
    with active_dropout(model, scope):
        for number in range(1, passes + 1):
            output = model.output(features)
            p = output.seg_logits.sigmoid()
            deviation = p - mean  # Welford: mean of squares less square of the mean would be mostly rounding error
            mean = mean + deviation / number
            squares = squares + deviation * (p - mean)
            total_entropy = total_entropy + binary_entropy(p)
            if output.clf_logits is not None:
                clf_passes.append(output.clf_logits.softmax(1))
    variance = squares / passes
    seg_entropy = binary_entropy(mean)
    lesion = mean >= 0.5
    clf = torch.stack(clf_passes) if clf_passes else None  # [T, B, K]
    clf_entropy, clf_mi, clf_var = (None, None, None) if clf is None else _class_uncertainty(clf)
    pixels = (1, 2, 3)
    return McDropout(
        seg_var=variance.mean(pixels),
        seg_entropy=seg_entropy.mean(pixels),
        seg_mi=(seg_entropy - total_entropy / passes).clamp_min(0).mean(pixels),
        seg_var_fg=(variance * lesion).sum(pixels) / lesion.sum(pixels).clamp_min(1),
        seg_var_map=variance,
        iou=overlap(lesion, masks > 0).iou,
        clf_entropy=clf_entropy,
        clf_mi=clf_mi,
        clf_var=clf_var,
        probs=None if clf is None else clf.mean(0),
    )


class HeadDropout(NamedTuple):
    """Uncertainty of the class under dropout in the classification head alone; as in :class:`McDropout`, each [B]."""

    clf_entropy: Tensor
    clf_mi: Tensor
    clf_var: Tensor


@torch.no_grad()
def head_dropout(model: Method, features: list[Tensor], passes: int) -> HeadDropout | None:
    """The paper's "classification head only" (notes B3), for next to nothing: the head's input is computed once.

    Args:
        model, features, passes: as for :func:`mc_dropout`.

    Returns:
        None where the method does not classify or its head has no dropout.
    """
    if not dropout_layers(model, "head"):
        return None
    calls: list[tuple[tuple[Tensor, ...], bool]] = []
    device = features[0].device.type
    head: nn.Module = model.get_submodule("clf_head")
    hook = head.register_forward_pre_hook(
        lambda _, arguments: calls.append((arguments, torch.is_autocast_enabled(device)))
    )
    try:
        model.output(features)
    finally:
        hook.remove()
    ((inputs, is_lower),) = calls
    with active_dropout(model, "head"), torch.autocast(device, torch.bfloat16, enabled=is_lower):
        logits = [head(*inputs).float() for _ in range(passes)]
    return HeadDropout(*_class_uncertainty(torch.stack(logits).softmax(2)))


def _class_uncertainty(probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[T, B, K] -> entropy of the mean, mutual information, variance over passes as a mean over classes; each [B]."""
    total = entropy(probs.mean(0))
    return total, (total - entropy(probs, dim=2).mean(0)).clamp_min(0), probs.var(0, correction=0).mean(1)

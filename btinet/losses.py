"""Losses: focal Tversky with boundary and texture terms, focal cross-entropy, and the gate loss.

Sources: paper Sec. 4.1, App. B-D; notes 3b (L1-L12) and B5-B6 where the paper is silent. All losses take logits and
reduce to a mean over the samples given, so that the mean over equal shards is the mean over the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from btinet.config import LossSettings
from btinet.ranks import Ranks

EPSILON = 1e-7


def segmentation_losses(logits: Tensor, masks: Tensor, settings: LossSettings) -> dict[str, Tensor]:
    """The three segmentation terms and their weighted sum ``seg``.

    Args:
        logits: [B, 1, S, S].
        masks: [B, 1, S, S] in {0, 1}.
        settings: weights and exponents.
    """
    p = torch.sigmoid(logits)
    terms = {
        "tversky": focal_tversky(p, masks, settings),
        "boundary": boundary_loss(p, masks),
        "texture": texture_loss(p, masks),
    }
    terms["seg"] = terms["tversky"] + settings.boundary * terms["boundary"] + settings.texture * terms["texture"]
    return terms


def focal_tversky(p: Tensor, y: Tensor, settings: LossSettings) -> Tensor:
    """(1 - TI)^gamma per image, TI = (TP + s) / (TP + a FN + b FP + s) (Abraham & Khan 2019).

    The smoothing s = 1 pixel gives images with an empty mask a useful gradient.
    """
    tp = (p * y).sum((1, 2, 3))
    fn = ((1 - p) * y).sum((1, 2, 3))
    fp = (p * (1 - y)).sum((1, 2, 3))
    s = settings.tversky_smooth
    index = (tp + s) / (tp + settings.tversky_fn * fn + settings.tversky_fp * fp + s)
    # x^0.75 has an infinite slope at 0: hold it an epsilon away
    return (1 - index).clamp_min(EPSILON).pow(settings.tversky_gamma).mean()


def boundary_loss(p: Tensor, y: Tensor) -> Tensor:
    """Mean |K * y - K * p| with the 5x5 curvature kernel K = (x^2 - y^2) exp(-(x^2 + y^2) / 2) (notes L4)."""
    kernel = curvature_kernel(p.device).to(p.dtype)
    return F.conv2d(y - p, kernel, padding=2).abs().mean()


def curvature_kernel(device: torch.device) -> Tensor:
    """[1, 1, 5, 5]; made where it is used, since a copy from the host would wait for the device."""
    axis = torch.arange(-2.0, 3.0, device=device)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    return ((columns**2 - rows**2) * torch.exp(-(columns**2 + rows**2) / 2))[None, None]


def texture_loss(p: Tensor, y: Tensor) -> Tensor:
    """Mean over images of |std(Sobel_x y) - std(Sobel_x p)| (notes L5)."""
    slope = torch.arange(-1.0, 2.0, device=p.device, dtype=p.dtype)
    kernel = torch.outer(2 - slope.abs(), slope)[None, None]

    def spread(maps: Tensor) -> Tensor:
        variance = F.conv2d(maps, kernel, padding=1).var((1, 2, 3), correction=0)
        return (variance + EPSILON).sqrt()  # an empty mask has variance 0, where sqrt has no slope

    return (spread(y) - spread(p)).abs().mean()


def focal_cross_entropy(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """(1 - p_t)^gamma * CE; logits [B, K], labels [B] int64."""
    cross_entropy = F.cross_entropy(logits, labels, reduction="none")
    p_true = torch.exp(-cross_entropy)
    # as above: gamma < 1 has an infinite slope at 0
    return ((1 - p_true).clamp_min(EPSILON).pow(gamma) * cross_entropy).mean()


def soft_iou(p: Tensor, y: Tensor) -> Tensor:
    """Eq. 17, per sample: probabilities and masks [B, 1, S, S] -> [B]."""
    intersection = (p * y).sum((1, 2, 3))
    return intersection / (p.sum((1, 2, 3)) + y.sum((1, 2, 3)) - intersection + EPSILON)


def difficulty(values: Tensor, counted: Tensor, ranks: Ranks) -> Tensor:
    """Eq. 15/18-20: min-max within the global batch and inverted, so that the lowest value gets target 1.

    Args:
        values: [B].
        counted: bool [B]: the samples that have a difficulty. The others get 0.
    """
    low, high = ranks.min_max(values, counted)
    return torch.where(counted, 1 - (values - low) / (high - low + EPSILON), 0)


def gate_loss(
    w_seg: Tensor, w_clf: Tensor, seg_logits: Tensor, clf_logits: Tensor, masks: Tensor, ranks: Ranks
) -> Tensor:
    """Eq. 21 without lambda_gate: BCE of the gates against difficulty, summed over tasks, averaged over levels.

    Samples without a lesion have no segmentation difficulty (their soft IoU is 0 whatever is predicted) and take
    no part in the segmentation term (notes B6), which is 0 where the batch has fewer than two others.

    Args:
        w_seg, w_clf: gate weights [B, 4], or fewer where an ablation leaves levels without a gate.
        seg_logits, clf_logits: [B, 1, S, S] and [B, K]; no gradient flows into them.
        masks: [B, 1, S, S] in {0, 1}.
        ranks: extremes and counts are taken over the batches of all of them.
    """
    with torch.no_grad():
        lesion = masks.amax((1, 2, 3)) > 0
        lesions = ranks.sum(lesion.sum())
        target_seg = difficulty(soft_iou(torch.sigmoid(seg_logits.float()), masks), lesion, ranks)
        target_clf = difficulty(clf_logits.float().softmax(1).amax(1), torch.ones_like(lesion), ranks)
        # of the mean over the lesions of all ranks, as this rank's share of a mean over ranks
        share = torch.where(lesions < 2, 0, lesion * ranks.size / lesions)
    return _gate_bce(w_clf, target_clf).mean() + (_gate_bce(w_seg, target_seg) * share).sum()


def _gate_bce(weights: Tensor, targets: Tensor) -> Tensor:
    """Per sample, mean over levels; weights [B, L], targets [B] -> [B]."""
    targets = targets[:, None].expand_as(weights)
    return F.binary_cross_entropy(weights.float(), targets, reduction="none").mean(1)

"""Uncertainty Proxy Attention (paper Sec. 3.2, Eq. 9-14), and the gates that ablations put in its place."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btinet.models.output import Signals
from btinet.models.pooled import modulate, pool, summing
from btinet.models.tim import Interaction

Gate = Literal["sigmoid", "softmax", "linear", "random", "off"]


class UPA(nn.Module):
    """Per-sample gate between the features before and after TIM, driven by three uncertainty signals u.

    These modules, one a level, are all that Stage 2 trains. For the paper's sizes they hold 41,154, 28,866, 22,722
    and 19,650 parameters.

    Args:
        gate: how the weights follow from u. ``sigmoid``: Eq. 12. Ablations: ``softmax``, of the same network, so that
            w_seg + w_clf = 1 (Sec. 4.2); ``linear``: Eq. 12 without its hidden layer; ``random``: w ~ U(0, 1)
            whatever u is, a control whose weights know nothing about the sample; ``off``: w = 1, TIM as without UPA
            (notes B38). The last two learn nothing; their align is that of random projections, for the record.
    """

    def __init__(self, channels: int, clf_dim: int, hidden: int, projection: int, gate: Gate = "sigmoid") -> None:
        super().__init__()
        self.gate = gate
        self.learns = gate in ("sigmoid", "softmax", "linear")
        self.project_seg = nn.Linear(channels, projection, bias=False).requires_grad_(self.learns)  # W_s
        self.project_clf = nn.Linear(clf_dim, projection, bias=False).requires_grad_(self.learns)  # W_c
        if gate == "linear":
            self.mlp: nn.Module = nn.Linear(3, 2)
        elif self.learns:
            self.mlp = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, 2))

    def forward(self, d: Tensor, pooled: Tensor, f: Tensor, interaction: Interaction) -> tuple[Tensor, Tensor, Signals]:
        """Gate one level.

        Args:
            d: decoder map D_l before TIM, [B, C, H, W].
            pooled: GAP(D_l), [B, C].
            f: classification vector f_l before TIM, [B, F].
            interaction: TIM's proposal.

        Returns:
            D_final [B, C, H, W] (Eq. 13), f_final [B, F] (Eq. 14) and the level's signals, each [B].
        """
        modulation = interaction.mu - 1  # D_enh - D = D * (mu - 1)
        residual_clf = interaction.f_enh - f
        p_seg = self.project_seg(pooled * modulation)
        p_clf = self.project_clf(residual_clf)
        align = F.cosine_similarity(p_seg, p_clf, dim=1)  # Eq. 9
        seg_energy = gradient_energy(d)  # Eq. 10
        clf_energy = torch.log1p(interaction.f_enh.var(dim=1, correction=0))  # Eq. 11
        u = torch.stack([align, seg_energy, clf_energy], dim=1)
        w_seg, w_clf = self.weights(u).unbind(dim=1)
        d_final = modulate(d, 1 + w_seg[:, None] * modulation)  # Eq. 13
        f_final = f + w_clf[:, None] * residual_clf  # Eq. 14
        with torch.no_grad():
            magnitude = pool(d.abs())
            power = pool(d.square())
            signals = Signals(
                w_seg=w_seg,
                w_clf=w_clf,
                align=align,
                seg_energy=seg_energy,
                clf_energy=clf_energy,
                tim_dclf_l1=residual_clf.abs().mean(1),
                tim_dclf_l2=residual_clf.square().mean(1).sqrt(),
                tim_dseg_l1=(magnitude * modulation.abs()).mean(1),
                tim_dseg_l2=(power * modulation.square()).mean(1).sqrt(),
            )
        return d_final, f_final, signals

    def weights(self, u: Tensor) -> Tensor:
        """Signals [B, 3] -> w_seg and w_clf [B, 2], in [0, 1] (Eq. 12).

        A random gate draws from torch's global generator in every pass, as dropout does, and in evaluation mode too.
        """
        match self.gate:
            case "softmax":
                return self.mlp(u).softmax(dim=1)
            case "random":
                return torch.rand_like(u[:, :2])
            case "off":
                return torch.ones_like(u[:, :2])
        return torch.sigmoid(self.mlp(u))


def gradient_energy(d: Tensor) -> Tensor:
    """Eq. 10: absolute forward differences along both axes, summed and divided by C*H*W; [B, C, H, W] -> [B].

    The last row and column have no forward difference and count as 0.
    """
    rows = d.permute(0, 2, 3, 1)  # as it lies in memory, so that the gradients of the slices do too
    vertical = (rows[:, 1:] - rows[:, :-1]).abs().sum((1, 2, 3), dtype=summing(d))
    horizontal = (rows[:, :, 1:] - rows[:, :, :-1]).abs().sum((1, 2, 3), dtype=summing(d))
    return (vertical + horizontal) / d[0].numel()

"""Uncertainty Proxy Attention (paper Sec. 3.2, Eq. 9-14)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btinet.models.output import Signals
from btinet.models.tim import Interaction


class UPA(nn.Module):
    """Per-sample gate between the features before and after TIM, driven by three uncertainty signals.

    These modules, one a level, are all that Stage 2 trains. For the paper's sizes they hold 41,154, 28,866, 22,722
    and 19,650 parameters.
    """

    def __init__(self, channels: int, clf_dim: int, hidden: int, projection: int) -> None:
        super().__init__()
        self.project_seg = nn.Linear(channels, projection, bias=False)  # W_s
        self.project_clf = nn.Linear(clf_dim, projection, bias=False)  # W_c
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
        w_seg, w_clf = torch.sigmoid(self.mlp(u)).unbind(dim=1)  # Eq. 12
        d_final = d * (1 + w_seg[:, None] * modulation)[:, :, None, None]  # Eq. 13
        f_final = f + w_clf[:, None] * residual_clf  # Eq. 14
        with torch.no_grad():
            magnitude = d.abs().mean((2, 3))
            power = d.square().mean((2, 3))
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


def gradient_energy(d: Tensor) -> Tensor:
    """Eq. 10: absolute forward differences along both axes, summed and divided by C*H*W; [B, C, H, W] -> [B].

    The last row and column have no forward difference and count as 0.
    """
    vertical = (d[:, :, 1:] - d[:, :, :-1]).abs().sum((1, 2, 3))
    horizontal = (d[:, :, :, 1:] - d[:, :, :, :-1]).abs().sum((1, 2, 3))
    return (vertical + horizontal) / d[0].numel()

"""Task Interaction Module (paper Sec. 3.1, Eq. 1-8)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Interaction(NamedTuple):
    """What TIM proposes; UPA decides how much of it is taken."""

    mu: Tensor
    """Channel-wise modulation [B, C] in [1, 1 + tau]: D_enh = D * mu (Eq. 8)."""
    f_enh: Tensor
    """Enhanced classification vector [B, F] (Eq. 4)."""


class TIM(nn.Module):
    """Bidirectional exchange between decoder map D_l [B, C, H, W] and classification vector f_l [B, F].

    Both directions read the pre-interaction features, so neither feeds the other. The module works on the pooled
    map alone: Eq. 1's 1x1 convolution is linear, so it commutes with the average that follows it, and costs
    C * C/2 multiplications a sample rather than a pixel.
    """

    def __init__(self, channels: int, clf_dim: int, tau: float) -> None:
        super().__init__()
        self.tau = tau
        self.reduce = nn.Linear(channels, channels // 2)  # the 1x1 convolution of Eq. 1
        self.context = nn.Linear(channels // 2, clf_dim)
        self.clf_gate = nn.Linear(clf_dim, clf_dim)
        self.prior = nn.Linear(clf_dim, channels)
        self.seg_gate = nn.Linear(channels, channels)

    def forward(self, pooled: Tensor, f: Tensor) -> Interaction:
        """GAP(D_l) [B, C] and f_l [B, F] -> the proposed interaction."""
        z = self.reduce(pooled)  # Eq. 1
        c = self.context(torch.relu(z))  # Eq. 2
        g_clf = torch.sigmoid(self.clf_gate(c))  # Eq. 3
        f_enh = f + g_clf * c  # Eq. 4
        u_clf = torch.sigmoid(self.prior(f))  # Eq. 5
        g_seg = torch.sigmoid(self.seg_gate(pooled))  # Eq. 6
        mu = 1 + self.tau * g_seg * u_clf  # Eq. 7
        return Interaction(mu, f_enh)

"""Eq. 1-14 of the paper against direct NumPy computations that never take the module's shortcuts.

The modules work on pooled maps and on mu - 1; the references build every map of the paper, pixel by pixel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from btinet.models.tim import TIM, Interaction
from btinet.models.upa import UPA, gradient_energy

Array = NDArray[np.float64]

SIZES = [  # channels, height, width, clf_dim, tau
    (6, 4, 4, 8, 0.7),
    (4, 3, 7, 5, 1.0),
    (10, 1, 1, 3, 0.3),
]
HIDDEN, PROJECTION, BATCH = 7, 5, 3


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def dense(layer: nn.Linear, x: Array) -> Array:
    y = x @ layer.weight.detach().numpy().T
    return y if layer.bias is None else y + layer.bias.detach().numpy()


def convolve_1x1(layer: nn.Linear, maps: Array) -> Array:
    """The dense layer applied to each pixel of [B, C, H, W] on its own."""
    out = np.empty((len(maps), layer.out_features, *maps.shape[2:]))
    for b, i, j in np.ndindex(len(maps), *maps.shape[2:]):
        out[b, :, i, j] = dense(layer, maps[b, :, i, j])
    return out


class Level(NamedTuple):
    """Modules in double precision, random input, and what the paper's equations make of it."""

    tim: TIM
    upa: UPA
    d: Tensor
    f: Tensor
    d_enh: Array
    f_enh: Array
    mu: Array

    def interaction(self) -> Interaction:
        interaction: Interaction = self.tim(self.d.mean((2, 3)), self.f)
        return interaction

    def gated(self):  # type: ignore[no-untyped-def]
        """D_final, f_final, signals."""
        return self.upa(self.d, self.d.mean((2, 3)), self.f, self.interaction())


@pytest.fixture(params=SIZES, ids=str)
def level(request: pytest.FixtureRequest) -> Level:
    channels, height, width, clf_dim, tau = request.param
    torch.manual_seed(channels)
    tim, upa = TIM(channels, clf_dim, tau).double(), UPA(channels, clf_dim, HIDDEN, PROJECTION).double()
    d, f = torch.randn(BATCH, channels, height, width).double(), torch.randn(BATCH, clf_dim).double()

    maps, vector = d.numpy(), f.numpy()
    z = convolve_1x1(tim.reduce, maps).mean((2, 3))  # Eq. 1
    c = dense(tim.context, np.maximum(z, 0))  # Eq. 2
    f_enh = vector + sigmoid(dense(tim.clf_gate, c)) * c  # Eq. 3, 4
    u_clf = sigmoid(dense(tim.prior, vector))  # Eq. 5
    g_seg = sigmoid(dense(tim.seg_gate, maps.mean((2, 3))))  # Eq. 6
    mu = 1 + tau * g_seg * u_clf  # Eq. 7
    d_enh = maps * mu[:, :, None, None]  # Eq. 8
    return Level(tim, upa, d, f, d_enh, f_enh, mu)


def close(actual: Tensor, expected: Array) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


class TestTIM:
    def test_equations_1_to_4_the_enhanced_vector(self, level: Level) -> None:
        close(level.interaction().f_enh, level.f_enh)

    def test_equations_5_to_7_the_modulation(self, level: Level) -> None:
        close(level.interaction().mu, level.mu)

    def test_reduces_to_half_the_channels(self) -> None:
        assert TIM(384, 256, 0.7).reduce.weight.shape == (192, 384)

    @pytest.mark.parametrize("tau", [0.3, 0.7, 1.0])
    @pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
    def test_mu_lies_between_1_and_1_plus_tau(self, tau: float, scale: float) -> None:
        torch.manual_seed(0)
        mu = TIM(6, 8, tau)(scale * torch.randn(64, 6), scale * torch.randn(64, 8)).mu
        assert mu.min() >= 1
        assert mu.max() <= 1 + tau + 1e-6

    @pytest.mark.parametrize(
        ("seg_bias", "clf_bias", "expected"),
        [(1e4, 1e4, 1.7), (-1e4, 1e4, 1.0), (1e4, -1e4, 1.0), (1e4, 0.0, 1.35), (0.0, 0.0, 1.175)],
    )
    def test_mu_multiplies_both_gates(self, seg_bias: float, clf_bias: float, expected: float) -> None:
        tim = TIM(6, 8, 0.7)
        for layer, bias in ((tim.seg_gate, seg_bias), (tim.prior, clf_bias)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, bias)
        mu = tim(torch.randn(2, 6), torch.randn(2, 8)).mu
        assert mu.flatten().tolist() == pytest.approx([expected] * 12)

    def test_neither_direction_reads_the_others_result(self) -> None:
        torch.manual_seed(0)
        tim, pooled, f = TIM(6, 8, 0.7), torch.randn(2, 6), torch.randn(2, 8)
        before = tim(pooled, f)
        for layer in (tim.reduce, tim.context, tim.clf_gate):  # other f_enh ...
            nn.init.normal_(layer.weight)
        other_vector = tim(pooled, f)
        assert not torch.allclose(other_vector.f_enh, before.f_enh)
        assert torch.equal(other_vector.mu, before.mu)  # ... same mu
        for layer in (tim.prior, tim.seg_gate):  # and the reverse
            nn.init.normal_(layer.weight)
        other_map = tim(pooled, f)
        assert not torch.allclose(other_map.mu, before.mu)
        assert torch.equal(other_map.f_enh, other_vector.f_enh)


class TestUPA:
    def test_equation_9_alignment(self, level: Level) -> None:
        maps, vector = level.d.numpy(), level.f.numpy()
        residual = (level.d_enh - maps).mean((2, 3))
        p_seg = residual @ level.upa.project_seg.weight.detach().numpy().T
        p_clf = (level.f_enh - vector) @ level.upa.project_clf.weight.detach().numpy().T
        cosine = (p_seg * p_clf).sum(1) / (np.linalg.norm(p_seg, axis=1) * np.linalg.norm(p_clf, axis=1))
        assert np.ptp(cosine) > 0.01
        close(level.gated()[2].align, cosine)

    def test_equation_10_gradient_energy(self, level: Level) -> None:
        maps = level.d.numpy()
        batch, channels, height, width = maps.shape
        energy = np.zeros(batch)
        for b, c, i, j in np.ndindex(*maps.shape):
            if i + 1 < height:
                energy[b] += abs(maps[b, c, i + 1, j] - maps[b, c, i, j])
            if j + 1 < width:
                energy[b] += abs(maps[b, c, i, j + 1] - maps[b, c, i, j])
        close(level.gated()[2].seg_energy, energy / (channels * height * width))

    def test_equation_11_activation_spread_of_the_enhanced_vector(self, level: Level) -> None:
        spread = ((level.f_enh - level.f_enh.mean(1, keepdims=True)) ** 2).mean(1)
        close(level.gated()[2].clf_energy, np.log(1 + spread))

    def test_equation_12_gate_weights(self, level: Level) -> None:
        signals = level.gated()[2]
        u = torch.stack([signals.align, signals.seg_energy, signals.clf_energy], dim=1).detach().numpy()
        first, _, second = level.upa.mlp
        weights = sigmoid(dense(second, np.maximum(dense(first, u), 0)))
        close(signals.w_seg, weights[:, 0])
        close(signals.w_clf, weights[:, 1])

    def test_equations_13_and_14_interpolation(self, level: Level) -> None:
        d_final, f_final, signals = level.gated()
        w_seg = signals.w_seg.detach().numpy()[:, None, None, None]
        w_clf = signals.w_clf.detach().numpy()[:, None]
        maps, vector = level.d.numpy(), level.f.numpy()
        close(d_final, maps + w_seg * (level.d_enh - maps))
        close(f_final, vector + w_clf * (level.f_enh - vector))

    def test_magnitudes_of_what_tim_proposes(self, level: Level) -> None:
        signals = level.gated()[2]
        change_seg, change_clf = level.d_enh - level.d.numpy(), level.f_enh - level.f.numpy()
        close(signals.tim_dseg_l1, np.abs(change_seg).mean((1, 2, 3)))
        close(signals.tim_dseg_l2, np.sqrt((change_seg**2).mean((1, 2, 3))))
        close(signals.tim_dclf_l1, np.abs(change_clf).mean(1))
        close(signals.tim_dclf_l2, np.sqrt((change_clf**2).mean(1)))

    @pytest.mark.parametrize("seg", [0, 1])
    @pytest.mark.parametrize("clf", [0, 1])
    def test_weight_0_keeps_and_weight_1_takes_all_of_equations_4_and_8(self, level: Level, seg: int, clf: int) -> None:
        force_gate(level.upa, seg, clf)
        d_final, f_final, signals = level.gated()
        assert signals.w_seg.tolist() == [seg] * BATCH
        assert signals.w_clf.tolist() == [clf] * BATCH
        close(d_final, level.d_enh if seg else level.d.numpy())
        close(f_final, level.f_enh if clf else level.f.numpy())

    @pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
    def test_bounds(self, scale: float) -> None:
        torch.manual_seed(1)
        tim, upa = TIM(6, 8, 0.7), UPA(6, 8, HIDDEN, PROJECTION)
        d, f = scale * torch.randn(64, 6, 4, 4), scale * torch.randn(64, 8)
        pooled = d.mean((2, 3))
        d_final, f_final, signals = upa(d, pooled, f, tim(pooled, f))
        for weight in (signals.w_seg, signals.w_clf):
            assert weight.min() >= 0
            assert weight.max() <= 1
        assert signals.align.abs().max() <= 1 + 1e-6
        assert min(signals.seg_energy.min(), signals.clf_energy.min()) >= 0
        assert all(torch.isfinite(values).all() for values in (d_final, f_final, *signals))

    def test_opposite_and_equal_residuals_align_with_minus_1_and_1(self) -> None:
        upa = UPA(4, 4, HIDDEN, 4)
        nn.init.eye_(upa.project_seg.weight)
        nn.init.eye_(upa.project_clf.weight)
        direction = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        d, f = torch.ones(1, 4, 2, 2), torch.zeros(1, 4)
        for sign in (1, -1):
            interaction = Interaction(mu=1 + direction, f_enh=sign * direction)
            assert upa(d, d.mean((2, 3)), f, interaction)[2].align.item() == pytest.approx(sign)

    def test_a_proposal_of_nothing_is_no_alignment_and_has_finite_gradients(self) -> None:
        upa = UPA(6, 8, HIDDEN, PROJECTION)
        d, f = torch.randn(2, 6, 4, 4, requires_grad=True), torch.randn(2, 8, requires_grad=True)
        d_final, f_final, signals = upa(d, d.mean((2, 3)), f, Interaction(torch.ones(2, 6), f))
        assert signals.align.tolist() == [0, 0]
        (d_final.sum() + f_final.square().sum() + signals.w_seg.sum()).backward()
        assert all(torch.isfinite(x.grad).all() for x in (d, f))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[5, 5], [5, 5]], 0.0),
        ([[0, 1], [0, 1]], 2 / 4),
        ([[0, 1], [2, 3]], (2 + 2 + 1 + 1) / 4),
        ([[0, 0, 3], [0, 0, 0]], (3 + 3) / 6),
        ([[-1, 4]], 5 / 2),
    ],
)
def test_gradient_energy_by_hand(rows: list[list[float]], expected: float) -> None:
    assert gradient_energy(torch.tensor(rows, dtype=torch.float32)[None, None]).tolist() == [expected]


def test_gate_sizes_are_those_of_the_paper() -> None:
    gates = [UPA(width, 256, 32, 64) for width in (384, 192, 96, 48)]
    assert [sum(p.numel() for p in gate.parameters()) for gate in gates] == [41154, 28866, 22722, 19650]


def force_gate(upa: UPA, seg: int, clf: int) -> None:
    """Make the gate answer exactly these weights (0 or 1) whatever it sees."""
    last = upa.mlp[-1]
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([2.0 * seg - 1, 2.0 * clf - 1]) * 1e4)

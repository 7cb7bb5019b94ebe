import pytest
import torch

from btinet.models.baselines.attention_unet import AttentionUNet, GridAttentionGate
from tests.models.baselines.test_unet import seeded_decode
from tests.models.baselines.tester import MethodTester, images


class TestAttentionUNet(MethodTester):
    method = AttentionUNet
    parameters = (32.3, 32.9)

    def test_attention_is_one_coefficient_per_pixel_in_0_1(self, model: AttentionUNet) -> None:
        features = model.eval().encode(images())
        alpha = model.decoder.levels[0].gate.attention(features[3], features[4])
        assert alpha.shape == (2, 1, 4, 4)
        assert 0 < alpha.min() < alpha.max() < 1

    @pytest.mark.parametrize("level", range(4))
    def test_every_gate_matters(self, model: AttentionUNet, level: int) -> None:
        # in training mode BatchNorm keeps an untrained decoder's signal from fading
        gate = model.decoder.levels[level].gate
        with torch.no_grad():
            gate.psi.weight.mul_(30)  # an untrained gate is nearly flat, which the BatchNorm behind it takes out
            features = model.train().encode(images())
            before = seeded_decode(model, features)
            gate.attention = lambda skip, gating: torch.ones_like(skip[:, :1])
            assert (before - seeded_decode(model, features)).abs().max() > 1e-3


def test_gate_is_additive_attention_of_skip_and_gating_signal() -> None:
    gate = GridAttentionGate(2, 3).eval()
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.zero_()
        gate.theta.weight[0, 0] = 0.25  # theta(x): mean of the skip's first channel over 2x2 pixels
        gate.phi.weight[0, 1] = 1.0  # phi(g): the gating signal's second channel
        gate.psi.weight[0, 0] = 1.0
    skip, gating = torch.rand(1, 2, 8, 8), torch.rand(1, 3, 4, 4) - 0.5
    coarse = torch.relu(torch.nn.functional.avg_pool2d(skip[:, :1], 2) + gating[:, 1:2]).sigmoid()
    expected = torch.nn.functional.interpolate(coarse, size=8, mode="bilinear")
    torch.testing.assert_close(gate.attention(skip, gating), expected)


def test_closed_gate_passes_nothing_on() -> None:
    gate = GridAttentionGate(4, 6).eval()
    with torch.no_grad():
        gate.psi.bias.fill_(-100.0)
        one, other = (gate(torch.rand(1, 4, 8, 8), torch.rand(1, 6, 4, 4)) for _ in range(2))
    torch.testing.assert_close(one, other)

from __future__ import annotations

import pytest
import torch
from torch import nn

from btinet.models.baselines.missformer import BridgeAttention, EnhancedMixFFN, MISSFormer, Scales
from tests.models.baselines.tester import CLASSES, PAPER, MethodTester, images

SCALES = Scales([(8, 16, 16), (16, 8, 8), (40, 4, 4), (64, 2, 2)], 8)


class TestMISSFormer(MethodTester):
    method = MISSFormer
    parameters = (35.4522, 35.4523)  # the authors' 42,462,017 less the 7.01 M that never receive a gradient

    def test_parameters_are_the_authors_less_the_dead_ones(self) -> None:
        with torch.device("meta"):
            model = MISSFormer(PAPER, CLASSES)
        live = sum(p.numel() for p in model.parameters())
        ffns = [module for module in model.modules() if isinstance(module, EnhancedMixFFN)]
        dead = sum(2 * 2 * ffn.norm.normalized_shape[0] for ffn in ffns)  # two more LayerNorms in each
        coarsest = model.stages[3].blocks[0]
        dead += 2 * (sum(p.numel() for p in coarsest.parameters()) + 2 * 2 * 2048)  # decoder blocks at 7x7
        dead += 1024 * 512 + 512  # and their linear fusion
        assert live + dead == 42_462_017

    @pytest.mark.parametrize("skip", [0, 1, 2])
    def test_every_skip_matters(self, model: MISSFormer, skip: int) -> None:
        model.eval()
        with torch.no_grad():
            features = model.encode(images())
            whole = model.decode(features).seg_logits
            features[skip] = torch.zeros_like(features[skip])
            assert (model.decode(features).seg_logits - whole).abs().max() > 1e-3 * whole.abs().max()

    def test_the_bridge_matters(self, model: MISSFormer) -> None:
        model.eval()
        with torch.no_grad():
            whole = model(images()).seg_logits
            model.bridge = nn.ModuleList()
            assert (model(images()).seg_logits - whole).abs().max() > 1e-3 * whole.abs().max()

    def test_the_bridge_is_residual(self, model: MISSFormer) -> None:
        layer = model.bridge[0]
        with torch.no_grad():
            for last in (layer.attn.proj, *(ffn.fc2 for ffn in layer.ffns)):
                last.weight.zero_()
                last.bias.zero_()
        x = torch.randn(2, 496, 8)
        torch.testing.assert_close(layer(x, SCALES), x, rtol=0, atol=0)

    @pytest.mark.parametrize("source", [0, 1, 2, 3])
    def test_the_bridge_carries_context_from_every_scale_to_every_scale(self, model: MISSFormer, source: int) -> None:
        generator = torch.Generator().manual_seed(3)
        maps = [torch.randn(1, *shape, generator=generator) for shape in SCALES.shapes]
        maps[source].requires_grad_()
        layer = model.bridge[0].eval()
        for target, bridged in enumerate(SCALES.maps(layer(SCALES.tokens(maps), SCALES))):
            corner = bridged[0, :, -1, -1].square().sum()  # depends on the opposite corner, so not by convolution
            (gradient,) = torch.autograd.grad(corner, maps[source], retain_graph=True)
            assert gradient[0, :, 0, 0].abs().max() > 0, target

    def test_bridge_attention_is_over_reduced_tokens_of_all_scales_and_its_rows_sum_to_one(self) -> None:
        attention = BridgeAttention(8)
        x = torch.randn(2, 256 + 128 + 80 + 32, 8)
        # a 2x2 map of each scale's 8, 16, 40 and 64 channels, as tokens of 8
        assert attention.reduced(x, SCALES).shape == (2, 4 * (1 + 2 + 5 + 8), 8)
        with torch.no_grad():  # weights that sum to 1 average a constant value to itself
            attention.kv.weight[8:] = 0
            attention.kv.bias[8:] = torch.arange(8.0)
            attention.proj.weight.copy_(torch.eye(8))
            attention.proj.bias.zero_()
        torch.testing.assert_close(attention(x, SCALES), torch.arange(8.0).expand(2, 496, 8))

    def test_tokens_and_maps_are_inverse(self) -> None:
        maps = [torch.randn(2, *shape) for shape in SCALES.shapes]
        tokens = SCALES.tokens(maps)
        for there, back in zip(maps, SCALES.maps(tokens), strict=True):
            torch.testing.assert_close(there, back, rtol=0, atol=0)
        torch.testing.assert_close(tokens[0, 256 + 1], maps[1][0, 8:, 0, 0])  # the second half of scale 2's first pixel

    def test_enhanced_mix_ffn_formula(self) -> None:
        ffn = EnhancedMixFFN(4)
        x = torch.randn(2, 15, 4)
        hidden = ffn.fc1(x)
        local = ffn.dwconv(hidden.mT.reshape(2, 16, 3, 5)).reshape(2, 16, 15).mT
        expected = ffn.fc2(nn.functional.gelu(nn.functional.layer_norm(local + hidden, (16,))))
        torch.testing.assert_close(ffn(x, 3, 5), expected)

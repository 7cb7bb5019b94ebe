from __future__ import annotations

import pytest
import torch

import btinet.torchvision_compat  # noqa: F401  isort: skip  (must come before timm)
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention

from btinet.models.baselines.swin_unet import PatchExpand, SwinUNet
from tests.models.baselines.tester import CLASSES, PAPER, MethodTester, images


class TestSwinUNet(MethodTester):
    method = SwinUNet
    parameters = (27.1681, 27.1682)  # the authors' release: 27.168 M at one output channel

    def test_attention_rows_sum_to_one_and_stay_within_the_shifted_image_parts(self, model: SwinUNet) -> None:
        maps: list[torch.Tensor] = []
        for module in model.modules():
            if isinstance(module, WindowAttention):
                module.fused_attn = False
                module.softmax.register_forward_hook(lambda _m, _i, attention: maps.append(attention))
        with torch.no_grad():
            model.eval()(images(64))
        assert len(maps) == 2 * 4 + 2 * 3
        for attention in maps:
            torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
        # the second block of stage 1 has shifted 4x4 windows on a 16x16 map: the last window of each image wraps round
        wrapped = maps[1][15]  # [heads, 16, 16]
        assert (wrapped[:, 0, 2] < 1e-30).all() and (wrapped[:, 0, 1] > 0).all()

    def test_every_second_block_is_shifted_where_there_are_several_windows(self) -> None:
        with torch.device("meta"):
            model = SwinUNet(PAPER, CLASSES)
        shifts = [m.shift_size[0] for m in model.modules() if isinstance(m, SwinTransformerBlock)]
        assert shifts == [0, 3, 0, 3, 0, 3, 0, 0] + [0, 3] * 3
        assert [m.window_size for m in model.modules() if isinstance(m, SwinTransformerBlock)] == [(7, 7)] * 14

    @pytest.mark.parametrize("skip", [0, 1, 2])
    def test_skips_matter(self, model: SwinUNet, skip: int) -> None:
        model.eval()
        with torch.no_grad():
            features = model.encode(images())
            whole = model.decode(features).seg_logits
            features[skip] = torch.zeros_like(features[skip])
            assert (model.decode(features).seg_logits - whole).abs().max() > 1e-3 * whole.abs().max()

    def test_skips_are_the_inputs_of_the_stages(self, model: SwinUNet) -> None:
        inputs: list[torch.Tensor] = []
        for stage in model.stages:
            stage.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
        with torch.no_grad():
            features = model.eval().encode(images())
        for feature, entered in zip(features[:3], inputs, strict=False):
            torch.testing.assert_close(feature, entered, rtol=0, atol=0)

    def test_patch_expand_keeps_a_tokens_children_together(self) -> None:
        expand = PatchExpand(8)
        x = torch.zeros(1, 3, 3, 8)
        x[0, 1, 2] = 1
        y = expand(x).abs().sum(-1)[0]
        assert y.shape == (6, 6)
        assert (y[2:4, 4:6] > 0).all()
        y[2:4, 4:6] = 0
        assert (y == 0).all()

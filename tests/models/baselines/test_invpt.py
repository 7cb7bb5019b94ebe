from __future__ import annotations

import pytest
import torch

from btinet.models.baselines.invpt import CrossTaskAttention, InvPT, UPTransformerBlock
from tests.models.baselines.tester import CLASSES, TINY, MethodTester, images


class TestInvPT(MethodTester):
    method = InvPT
    parameters = (36.2, 36.3)  # ours: the notes give none for this encoder

    def test_heads(self, model: InvPT) -> None:
        heads = model.train()(images()).heads
        assert [head.weight for head in heads] == [1.0, 1.0]
        assert not torch.equal(heads[0].seg_logits, heads[1].seg_logits)
        assert not torch.equal(heads[0].clf_logits, heads[1].clf_logits)
        assert model.eval()(images()).heads == ()

    @pytest.mark.parametrize("task", ["seg", "clf"])
    def test_tasks_interact(self, model: InvPT, task: str) -> None:
        """Each prediction depends on the other task's preliminary prediction."""
        model.eval()
        with torch.no_grad():
            before = model(images())
            weight = model.embed[{"seg": "clf", "clf": "seg"}[task]].weight
            weight.add_(torch.randn_like(weight))
            after = model(images())
        one, other = (getattr(output, f"{task}_logits") for output in (before, after))
        assert (one - other).abs().max() > 1e-5 * one.abs().max()

    def test_attention_rows_sum_to_one_and_span_the_tasks(self, model: InvPT) -> None:
        for stage, block in enumerate(model.eval().blocks):
            side = 4 * 2**stage
            x = torch.randn(2 * 2, block.attn.proj.in_channels, side, side)
            message = torch.randn(2, 2, 2 * (side // 4) ** 2, 2 * 2 * 2) if stage else None
            scores = block.attn.scores(x, message)
            assert scores.shape == (2, 2, 2 * (side // 2) ** 2, 2 * 2 * 2)  # the same keys at every stage
            with torch.no_grad():  # weights that sum to 1 average a constant value to itself
                block.attn.value.weight.zero_()
                block.attn.value.bias.copy_(constant := torch.randn(x.shape[1]))
                attended, _ = block.attn(x, message)
                expected = block.attn.proj(constant[None, :, None, None].expand(x.shape))
            torch.testing.assert_close(attended, expected)

    @pytest.mark.parametrize("stage", [1, 2])
    def test_the_message_matters(self, model: InvPT, stage: int) -> None:
        with torch.no_grad():
            before = model.eval()(images())
            fuse = model.blocks[stage].attn.fuse
            assert fuse is not None
            fuse.weight[:, 2:] = 0
            after = model(images())
        assert (after.seg_logits - before.seg_logits).abs().max() > 0

    def test_the_message_is_enlarged_in_place(self) -> None:
        attention = CrossTaskAttention(8, stage=1).eval()
        x = torch.zeros(2, 8, 8, 8)  # one image, two tasks; queries at 4x4, keys at 2x2
        message = torch.zeros(1, 2, 2, 2, 2, 8)  # heads, tasks, rows, columns, keys
        message[0, 1, 1, 0, 1, 5] = 1  # head 1, task 1, upper right, key 5
        with torch.no_grad():
            assert attention.fuse is not None
            attention.fuse.weight.copy_(torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1]])[:, :, None, None])
            fused = attention.scores(x, message.reshape(1, 2, 8, 8)).reshape(2, 2, 4, 4, 8)
        assert fused[1, 1, 0, 3, 5] == 1  # the corner of bilinear enlargement
        assert fused[1, 1, :, 0].abs().max() == 0 and fused[1, 1, 3].abs().max() == 0
        others = fused.clone()
        others[1, 1, :, :, 5] = 0
        assert others.abs().max() == 0

    def test_swapping_the_tasks_swaps_the_outputs(self) -> None:
        torch.manual_seed(0)
        block = UPTransformerBlock(8, stage=0).eval()
        x = torch.randn(3, 2, 8, 4, 4)
        straight = block(x.flatten(0, 1), None)[0].unflatten(0, (3, 2))
        swapped = block(x.flip(1).flatten(0, 1), None)[0].unflatten(0, (3, 2))
        torch.testing.assert_close(swapped.flip(1), straight)
        assert (straight[:, 0] - straight[:, 1]).abs().max() > 0.1

    @pytest.mark.parametrize("tap", [0, 1, 2, 3])
    def test_every_encoder_feature_matters(self, tap: int) -> None:
        torch.manual_seed(0)
        model = InvPT(TINY, CLASSES).eval()
        with torch.no_grad():
            features = model.encode(images())
            whole = model.decode(features).seg_logits
            features[tap] = features[tap] + 1
            assert (model.decode(features).seg_logits - whole).abs().max() > 1e-3 * whole.abs().max()

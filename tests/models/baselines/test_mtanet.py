from itertools import pairwise

import pytest
import torch

from btinet.models.baselines.mtanet import AttentionBottleneck, MTANet, ReverseAdditionAttention
from tests.models.baselines.tester import MethodTester, images


class TestMTANet(MethodTester):
    method = MTANet
    parameters = (21.4, 26.1)

    def test_four_supervised_maps_that_differ(self, model: MTANet) -> None:
        output = model.train()(images())
        clf, *maps = output.heads
        assert clf.seg_logits is None and clf.clf_logits is output.clf_logits and clf.weight == 1
        assert [head.weight for head in maps] == [0.25] * 4
        assert maps[-1].seg_logits is output.seg_logits
        for head, finer in pairwise(maps):
            assert not torch.equal(head.seg_logits, finer.seg_logits)

    def test_reverse_attention_looks_at_the_background(self) -> None:
        attention = ReverseAdditionAttention.reverse_attention(torch.tensor([-9.0, 0.0, 9.0]))
        assert ((attention > 0) & (attention < 1)).all()
        assert attention[0] > 0.99 and attention[1] == 0.5 and attention[2] < 0.01

    def test_a_stage_adds_to_the_coarser_map_where_that_says_background(self) -> None:
        torch.manual_seed(0)
        stage = ReverseAdditionAttention(8, 4).eval()
        d, skip = torch.randn(1, 8, 4, 4), torch.randn(1, 4, 8, 8)
        with torch.no_grad():
            for c, changes in ((torch.full((1, 1, 8, 8), 50.0), False), (torch.full((1, 1, 8, 8), -50.0), True)):
                _, s = stage(d, skip, c)
                assert (s != c).any() == changes

    @pytest.mark.parametrize("part", ["partial_decoder", "stages.0", "stages.1", "stages.2"])
    def test_each_part_of_the_segmentation_matters(self, model: MTANet, part: str) -> None:
        model.train()
        module = model.get_submodule(part)
        with torch.no_grad():
            before = model(images()).seg_logits
            module.register_forward_hook(
                lambda _, given, made: 0 * made if isinstance(made, torch.Tensor) else (0 * made[0], given[2])
            )
            assert (before - model(images()).seg_logits).abs().max() > 1e-3

    def test_the_streams_meet_only_in_the_bottleneck(self) -> None:
        torch.manual_seed(0)
        head = AttentionBottleneck(8, 3, 0.0)
        ends: list[torch.Tensor] = []
        head.clinical[-1].register_forward_hook(lambda _, given, made: ends.append(made))
        x = torch.randn(4, 8, 2, 2)
        with torch.no_grad():
            head(x)
            for layer in head.image[:2]:  # the image stream shares nothing
                layer.weight[-5:] = 0
                layer.bias[-5:] = 0
            head(x)
        assert ends[0].std(0).max() > 1e-4
        assert ends[1].std(0).max() < 1e-6

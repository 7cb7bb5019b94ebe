import torch

from btinet.models.baselines.densemtl import XTAM, DenseMTL
from tests.models.baselines.tester import MethodTester, images


def maps(channels: int = 8, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 2, channels, size, size, generator=generator)
    return source, target


def xtam() -> XTAM:
    torch.manual_seed(0)
    return XTAM(8)


class TestDenseMTL(MethodTester):
    method = DenseMTL
    parameters = (56.6, 58.6)

    def test_attention_rows_sum_to_one(self) -> None:
        source, target = maps(size=5)
        attention = xtam().attention(source, target)
        assert attention.shape == (2, 25, 25)
        torch.testing.assert_close(attention.sum(2), torch.ones(2, 25))
        assert attention.std() > 0

    def test_a_target_position_gathers_where_it_attends(self) -> None:
        module = xtam().eval()
        with torch.no_grad():
            module.alpha.fill_(1.0)
            source, target = maps(size=4)  # a grid of one position: attention is 1, whatever the target
            expected = module.value(source.amax((2, 3), keepdim=True)).expand_as(source)
            torch.testing.assert_close(module.correlated(source, target), expected)
            for parameter, value in ((module.value[0].weight, 0.0), (module.value[1].bias, 1.0)):
                parameter.fill_(value)
            source, target = maps()  # equal values gather to that value wherever a target position attends
            torch.testing.assert_close(module.correlated(source, target), torch.ones_like(source))

    def test_alpha_zero_silences_cross_attention_only(self) -> None:
        module = xtam()
        source, target = maps()
        with torch.no_grad():
            assert not module.alpha.any()  # as it starts
            assert not module.correlated(source, target).any()
            assert torch.equal(module(source, target), module(source, -target))  # deaf to the target
            assert not torch.equal(module(source, target), module(-source, target))  # self-attention passes
            module.alpha.fill_(1.0)
            assert not torch.equal(module(source, target), module(source, -target))

    def test_the_exchange_goes_both_ways(self, model: DenseMTL) -> None:
        x = {"seg": maps(16)[0], "clf": maps(16)[1]}
        with torch.no_grad():
            before = model.exchange(x)
            for told, teller in (("seg", "clf"), ("clf", "seg")):
                after = model.exchange(x | {teller: -x[teller]})
                assert not torch.equal(before[told], after[told])
            for fuse in model.exchange.fuse.values():
                fuse[1].weight.zero_()  # BatchNorm: nothing is told
            silent = model.exchange(x)
        assert all(torch.equal(silent[task], x[task]) for task in x)

    def test_the_exchange_matters(self, model: DenseMTL) -> None:
        model.train().clf_head[2].p = 0.0  # BatchNorm on the batch, no dropout
        with torch.no_grad():
            before = model(images())
            model.exchange.register_forward_hook(lambda module, given, made: given[0])
            after = model(images())
        for a, b in zip(before[:2], after[:2], strict=True):
            assert (a - b).abs().max() > 1e-3

    def test_both_resolutions_are_supervised(self, model: DenseMTL) -> None:
        heads = model.train()(images()).heads
        assert [head.weight for head in heads] == [0.5, 0.5]
        assert not torch.equal(heads[0].seg_logits, heads[1].seg_logits)

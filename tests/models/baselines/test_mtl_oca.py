import torch

from btinet.models.baselines.mtl_oca import MTLOCA, ObjectContextualAttention
from tests.models.baselines.tester import MethodTester, images


def attention() -> tuple[ObjectContextualAttention, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return ObjectContextualAttention(16, 8), torch.randn(2, 16, 4, 4), torch.randn(2, 2, 4, 4)


class TestMTLOCA(MethodTester):
    method = MTLOCA
    parameters = (28.8, 29.8)

    def test_memberships_and_attention_sum_to_one(self) -> None:
        module, x, regions = attention()
        members = module.membership(regions)
        torch.testing.assert_close(members.sum(2), torch.ones(2, 2))  # each region's pixels
        rows = module.pixel_region_attention(x, (x.flatten(2) @ members.mT).unsqueeze(3))
        assert rows.shape == (2, 16, 2)
        torch.testing.assert_close(rows.sum(2), torch.ones(2, 16))  # each pixel's regions
        assert members.std() > 0 and rows.std() > 0

    def test_a_region_describes_its_pixels(self) -> None:
        module, x, regions = attention()
        regions[:, 1] = -1e4
        regions[:, 1, 2, 3] = 1e4  # the lesion is one pixel
        seen: list[torch.Tensor] = []
        module.region_value.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        module(x, regions)
        torch.testing.assert_close(seen[0][:, :, 1, 0], x[:, :, 2, 3])

    def test_context_matters(self, model: MTLOCA) -> None:
        model.train()
        with torch.no_grad():
            results = []
            for scale in (1, 0):
                hook = model.attention.context.register_forward_hook(lambda _, given, made, scale=scale: scale * made)
                torch.manual_seed(1)  # dropout
                results.append(model(images()))
                hook.remove()
        assert (results[0].seg_logits - results[1].seg_logits).abs().max() > 1e-3
        assert torch.equal(results[0].clf_logits, results[1].clf_logits)  # it reads the features before

    def test_the_coarse_mask_is_supervised_and_leads_the_classifier(self, model: MTLOCA) -> None:
        model.eval()
        final, coarse = model(images()).heads
        assert (final.weight, coarse.weight) == (1, 0.4)
        assert coarse.clf_logits is None and not torch.equal(coarse.seg_logits, final.seg_logits)
        with torch.no_grad():
            model.coarse_head.weight.mul_(100)  # other pixels count
        assert not torch.equal(model(images()).clf_logits, final.clf_logits)

import torch

from btinet.models.baselines.two_heads import TwoHeads
from tests.models.baselines.tester import MethodTester, images


class TestTwoHeads(MethodTester):
    method = TwoHeads
    parameters = (17.5, 17.6)

    def test_the_heads_share_nothing_but_the_encoder(self, model: TwoHeads) -> None:
        model.eval()
        before = model(images())
        with torch.no_grad():
            model.clf_head[-1].weight.zero_()
        after = model(images())
        assert torch.equal(before.seg_logits, after.seg_logits)
        assert not torch.equal(before.clf_logits, after.clf_logits)

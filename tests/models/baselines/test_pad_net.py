import torch

from btinet.models.baselines.pad_net import PADNet
from tests.models.baselines.tester import MethodTester, images


class TestPADNet(MethodTester):
    method = PADNet
    parameters = (21.6, 22.0)  # the notes have no band: this construction's

    def test_initial_and_final_predictions_are_supervised(self, model: PADNet) -> None:
        heads = model.train()(images()).heads
        assert [head.weight for head in heads] == [1, 1]
        assert not torch.equal(heads[0].seg_logits, heads[1].seg_logits)
        assert not torch.equal(heads[0].clf_logits, heads[1].clf_logits)

    def test_distillation_carries_each_task_to_the_other(self, model: PADNet) -> None:
        model.train().clf_head[-1][2].p = 0.0  # BatchNorm on the batch, no dropout
        with torch.no_grad():
            before = model(images())
            for source, reached in (("clf", "seg_logits"), ("seg", "clf_logits")):
                value = model.distil.messages["clf_to_seg" if source == "clf" else "seg_to_clf"].value.weight
                kept = value.clone()
                value.zero_()
                after = model(images())
                value.copy_(kept)
                for name in ("seg_logits", "clf_logits"):
                    changed = (getattr(before, name) - getattr(after, name)).abs().max() > 1e-3
                    assert changed == (name == reached)

    def test_attention_is_a_gate(self, model: PADNet) -> None:
        with torch.no_grad():
            for message in model.distil.messages.values():
                attention = message.attention(torch.randn(2, message.gate.in_channels, 4, 4))
                assert ((attention > 0) & (attention < 1)).all() and attention.std() > 0

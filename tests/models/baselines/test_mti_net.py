import torch

from btinet.models.baselines.blocks import TASKS, Distillation
from btinet.models.baselines.mti_net import FeaturePropagation, MTINet
from tests.models.baselines.tester import CLASSES, TINY, MethodTester, images


def features(channels: int = 8, size: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {task: torch.randn(2, channels, size, size, generator=generator) for task in TASKS}


def swapped(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """seg_to_clf's under clf_to_seg's names, and the reverse."""
    other = {"seg_to_clf": "clf_to_seg", "clf_to_seg": "seg_to_clf"}
    return {name.replace(pair, other[pair]): w for name, w in weights.items() for pair in other if pair in name}


def exchanged(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a whole MTI-Net with its tasks swapped, all but the predictions, which differ in kind."""
    other = {"refine.seg": "refine.clf", "refine.clf": "refine.seg", "select.seg": "select.clf"}
    other |= {"select.clf": "select.seg", "seg_to_clf": "clf_to_seg", "clf_to_seg": "seg_to_clf"}
    made = {}
    for name, tensor in weights.items():
        parts = [part for part in other if part in name]
        # the propagation's inputs, and its masks, are the two tasks' features one after the other
        if any(part in name for part in ("mask.0.conv1", "mask.0.downsample.0", "reduce.conv1", "reduce.downsample.0")):
            tensor = tensor.roll(tensor.shape[1] // 2, 1)
        elif "mask.2." in name:
            tensor = tensor.roll(len(tensor) // 2, 0)
        made[name.replace(parts[0], other[parts[0]]) if parts else name] = tensor
    return made


def distilled(model: MTINet) -> list[dict[str, torch.Tensor]]:
    """What each task has after the exchange, by scale."""
    made: list[dict[str, torch.Tensor]] = []
    for module in model.distil:
        module.register_forward_hook(lambda module, given, features: made.append(features))
    with torch.no_grad():
        model.train()(images())  # BatchNorm keeps an untrained network's signal from fading
    return made


class TestMTINet(MethodTester):
    method = MTINet
    parameters = (46.7, 57.0)

    def test_swapping_the_tasks_swaps_what_is_distilled(self) -> None:
        torch.manual_seed(0)
        one, other = Distillation(8), Distillation(8)
        other.load_state_dict(swapped(one.state_dict()))
        given = features()
        a, b = one(given), other({"seg": given["clf"], "clf": given["seg"]})
        assert torch.equal(a["seg"], b["clf"]) and torch.equal(a["clf"], b["seg"])
        assert not torch.equal(a["seg"], a["clf"])

    def test_swapping_the_tasks_swaps_all_that_is_exchanged(self) -> None:
        """A network whose two tasks have changed places distils at every scale what the other one does, swapped."""
        torch.manual_seed(0)
        one, other = MTINet(TINY, CLASSES), MTINet(TINY, CLASSES)
        other.load_state_dict(exchanged(one.state_dict()))
        a, b = distilled(one), distilled(other)
        assert len(a) == 4
        for straight, crossed in zip(a, b, strict=True):
            for task, partner in (("seg", "clf"), ("clf", "seg")):
                torch.testing.assert_close(straight[task], crossed[partner], rtol=1e-4, atol=1e-4)
                assert (straight[task] - straight[partner]).abs().max() > 1e-2

    def test_a_message_goes_from_each_task_to_the_other(self) -> None:
        torch.manual_seed(0)
        distil, given = Distillation(8), features()
        for message in distil.messages.values():
            attention = message.attention(given["seg"])
            assert ((attention > 0) & (attention < 1)).all()
        before, after = distil(given), distil(given | {"seg": torch.zeros_like(given["seg"])})
        assert not torch.equal(before["clf"], after["clf"])
        assert torch.equal(after["clf"], given["clf"])  # nothing came, and its own features pass unchanged

    def test_propagation_shares_out_among_the_tasks(self) -> None:
        torch.manual_seed(0)
        masks = FeaturePropagation(8).task_masks(torch.cat(list(features().values()), 1))
        assert masks.shape == (2, 2, 8, 6, 6)
        torch.testing.assert_close(masks.sum(1), torch.ones(2, 8, 6, 6))
        assert masks.std() > 0

    def test_five_supervised_pairs(self, model: MTINet) -> None:
        heads = model.train()(images()).heads
        assert [head.weight for head in heads] == [1, 0.25, 0.25, 0.25, 0.25]
        assert all(head.seg_logits is not None and head.clf_logits is not None for head in heads)

    def test_each_scales_distillation_and_propagation_matter(self, model: MTINet) -> None:
        # in training mode, without dropout: BatchNorm keeps an untrained network's signal from fading
        model.train().clf_head[-1][2].p = 0.0
        with torch.no_grad():
            before = model(images())
            for module in (*model.distil, *model.propagate):
                hook = module.register_forward_hook(lambda module, given, made: given[0])  # no exchange
                after = model(images())
                hook.remove()
                for a, b in zip(before[:2], after[:2], strict=True):
                    assert (a - b).abs().max() > 1e-3

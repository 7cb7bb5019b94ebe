import pytest
import torch

from btinet.models.baselines.mtan import MTAN, first_activations
from btinet.models.encoder import Encoder
from tests.models.baselines.tester import PAPER, MethodTester, images


def ones_for(mask: torch.nn.Module) -> None:
    mask.register_forward_hook(lambda _, inputs, output: torch.ones_like(output))


class TestMTAN(MethodTester):
    method = MTAN
    parameters = (38.5, 42.5)

    def test_masks_are_in_0_1_and_multiply_the_shared_feature(self, model: MTAN) -> None:
        masks: list[torch.Tensor] = []
        for task in ("seg", "clf"):
            for mask in model.masks[task]:
                mask.register_forward_hook(lambda _, inputs, output: masks.append(output))
        with torch.no_grad():
            features = model.train().encode(images())
            attended = [model.attend(task, features[:5], features[5:]) for task in ("seg", "clf")]
        assert len(masks) == 10
        for mask, shared in zip(masks, features[5:] * 2, strict=True):
            assert mask.shape == shared.shape  # per pixel and channel
            assert 0 < mask.min() < mask.max() < 1
        for i, x in enumerate(attended):
            assert torch.equal(x, masks[5 * i + 4] * features[-1])

    @pytest.mark.parametrize("level", range(5))
    @pytest.mark.parametrize(("task", "changed"), [("seg", (True, False)), ("clf", (False, True))])
    def test_every_mask_matters_to_its_task_alone(
        self, model: MTAN, task: str, level: int, changed: tuple[bool, bool]
    ) -> None:
        self.check_change(model, model.masks[task][level], changed)

    @pytest.mark.parametrize("level", range(4))
    def test_decoder_masks_matter(self, model: MTAN, level: int) -> None:
        self.check_change(model, model.levels[level].mask, (True, False))

    def check_change(self, model: MTAN, mask: torch.nn.Module, changed: tuple[bool, bool]) -> None:
        # in training mode BatchNorm keeps an untrained decoder's signal from fading
        model.train()
        model.clf_head.eval()  # no dropout
        with torch.no_grad():
            features = model.encode(images(96, 4))
            before = model.decode(features)
            ones_for(mask)
            after = model.decode(features)
        for a, b, differs in zip(before[:2], after[:2], changed, strict=True):
            assert ((a - b).abs().max() > 1e-4) == differs

    def test_f_is_shared_by_the_tasks(self, model: MTAN) -> None:
        calls: list[torch.nn.Module] = []
        for f in model.between:
            f.register_forward_hook(lambda module, inputs, output: calls.append(module))
        model(images())
        assert [calls.count(f) for f in model.between] == [2] * 4

    def test_first_activations_have_the_taps_resolution(self, model: MTAN) -> None:
        with torch.device("meta"):
            layers = first_activations(Encoder(PAPER.encoder))
        assert [layer.num_features for layer in layers] == [48, 192, 336, 672, 1632]
        features = model.encode(images())
        assert len(features) == 10
        for u, p in zip(features[:5], features[5:], strict=True):
            assert u.shape[2:] == p.shape[2:]
            assert u is not p

    def test_encoding_leaves_no_hooks(self, model: MTAN) -> None:
        model.encode(images())
        assert not any(module._forward_hooks for module in model.encoder.modules())

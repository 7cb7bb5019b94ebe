import pytest
import torch

from btinet.models.baselines.unet import UNet
from btinet.models.method import Method
from tests.models.baselines.tester import MethodTester, images


def seeded_decode(model: Method, features: list[torch.Tensor]) -> torch.Tensor:
    torch.manual_seed(2)
    return model.decode(features).seg_logits


class TestUNet(MethodTester):
    method = UNet
    parameters = (28.1, 28.7)

    @pytest.mark.parametrize("level", range(4))
    def test_every_skip_matters(self, model: UNet, level: int) -> None:
        # in training mode BatchNorm keeps an untrained decoder's signal from fading
        with torch.no_grad():
            features = model.train().encode(images())
            before = seeded_decode(model, features)
            features[level] = torch.zeros_like(features[level])
            assert (before - seeded_decode(model, features)).abs().max() > 1e-2

    def test_skips_are_plain(self, model: UNet) -> None:
        # the second half of a level's input is what the up-convolution made, the first is the skip, untouched
        seen: list[torch.Tensor] = []
        model.decoder.levels[0].conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        with torch.no_grad():
            features = model.eval().encode(images())
            model.decode(features)
        assert torch.equal(seen[0][:, : features[3].shape[1]], features[3])

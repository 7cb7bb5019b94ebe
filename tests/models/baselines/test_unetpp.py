import pytest
import torch

from btinet.models.baselines.unetpp import UNetPP, mean_probability_logits
from tests.models.baselines.test_unet import seeded_decode
from tests.models.baselines.tester import PAPER, MethodTester, images

NODES = {"01", "02", "03", "04", "11", "12", "13", "21", "22", "31"}


class TestUNetPP(MethodTester):
    method = UNetPP
    parameters = (32.0, 32.6)

    def test_nested_graph(self, model: UNetPP) -> None:
        """Each node's convolutions receive the level's encoder feature, the earlier nodes and the one from below."""
        with torch.device("meta"):
            decoder = UNetPP(PAPER, 3).decoder
        assert set(decoder.nodes) == NODES
        taps, widths = (144, 192, 336, 960), (48, 96, 192, 384)
        for name, node in decoder.nodes.items():
            level, column = map(int, name)
            assert node.conv[0][0].in_channels == taps[level] + column * widths[level]

    @pytest.mark.parametrize("name", sorted(NODES))
    def test_every_node_matters(self, model: UNetPP, name: str) -> None:
        # in training mode BatchNorm keeps an untrained decoder's signal from fading
        with torch.no_grad():
            features = model.train().encode(images())
            before = seeded_decode(model, features)
            model.decoder.nodes[name].register_forward_hook(lambda _, inputs, node: torch.zeros_like(node))
            assert (before - seeded_decode(model, features)).abs().max() > 1e-3

    def test_skips_are_dense(self, model: UNetPP) -> None:
        """A node's convolutions read the encoder's feature and every earlier node of the level, untouched."""
        outputs: dict[str, torch.Tensor] = {}
        inputs: dict[str, torch.Tensor] = {}
        for name, node in model.decoder.nodes.items():
            node.register_forward_hook(lambda _, args, output, name=name: outputs.update({name: output}))
            node.conv.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
        with torch.no_grad():
            features = model.eval().encode(images())
            model.decode(features)
        for name, seen in inputs.items():
            level, column = map(int, name)
            earlier = torch.cat([features[level], *(outputs[f"{level}{j}"] for j in range(1, column))], dim=1)
            assert torch.equal(seen[:, : earlier.shape[1]], earlier)

    def test_four_heads_are_averaged(self, model: UNetPP) -> None:
        with torch.no_grad():
            output = model.eval()(images())
        assert [head.weight for head in output.heads] == [0.25] * 4
        mean = torch.stack([head.seg_logits.sigmoid() for head in output.heads]).mean(0)
        torch.testing.assert_close(output.seg_logits.sigmoid(), mean)


def test_mean_probability_survives_saturated_heads() -> None:
    logits = torch.tensor([[200.0, -200.0, 3.0], [200.0, -200.0, 0.0]])
    assert mean_probability_logits(logits).tolist()[:2] == pytest.approx([200.0, -200.0])
    torch.testing.assert_close(mean_probability_logits(logits)[2].sigmoid(), logits[:, 2].sigmoid().mean())

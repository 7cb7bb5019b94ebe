import pytest
import torch

from btinet.models.baselines.transunet import TransUNet
from btinet.models.encoder import Encoder
from tests.models.baselines.tester import PAPER, TINY, MethodTester, images


class TestTransUNet(MethodTester):
    method = TransUNet
    parameters = (109.9, 110.9)

    def test_a_gradient_reaches_every_parameter(self, model: TransUNet) -> None:
        # the encoder's layers behind P4 are frozen (see the next test): constants, not parameters
        for module in model.encoder.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if not parameter.requires_grad:
                    delattr(module, name)
                    module.register_buffer(name, parameter.data)
        super().test_a_gradient_reaches_every_parameter(model)

    @pytest.mark.parametrize("name", [TINY.encoder, PAPER.encoder])
    def test_what_only_p5_depends_on_is_frozen(self, name: str) -> None:
        encoder = Encoder(name)
        taps = encoder(images(64))
        sum(tap.sum() for tap in taps[:4]).backward()
        before_p4 = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
        settings = TINY.model_copy(update={"encoder": name})
        with torch.device("meta"):
            model = TransUNet(settings, 3)
        trained = {name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad}
        assert trained == before_p4

    def test_vit_base(self) -> None:
        """ViT-B: 12 layers and the final norm have 85.06 million parameters."""
        with torch.device("meta"):
            vit = TransUNet(PAPER, 3).vit
        assert len(vit.blocks) == 12
        assert sum(p.numel() for part in (vit.blocks, vit.norm) for p in part.parameters()) == 12 * 7_087_872 + 1536
        assert vit.pos_embed.shape == (1, 14 * 14, 768)

    @pytest.mark.parametrize("attention", [True, False])
    def test_tokens_see_the_whole_image(self, model: TransUNet, attention: bool) -> None:
        """A corner of P4 reaches the opposite corner's logits, ten tokens away, and only through the transformer."""
        if not attention:
            model.vit.blocks = torch.nn.Identity()
        features = [feature.detach() for feature in model.eval().encode(images(160))]
        features[3].requires_grad_(True)
        model.decode(features).seg_logits[:, :, -8:, -8:].sum().backward()
        assert (features[3].grad[:, :, 0, 0].abs().sum() > 0) == attention

    def test_positions_matter(self, model: TransUNet) -> None:
        """Without them the tokens' order would not: a rolled map gives a rolled map."""
        feature = model.eval().encode(images())[3]

        def equivariant() -> bool:
            return torch.allclose(model.vit(feature.roll(1, 2)), model.vit(feature).roll(1, 2), atol=1e-5)

        with torch.no_grad():
            assert not equivariant()
            model.vit.pos_embed.zero_()
            assert equivariant()

    def test_positions_are_interpolated(self, model: TransUNet) -> None:
        """The transformer without layers adds the positions to a zero map: at twice the grid, the same ramp."""
        vit = model.eval().vit
        vit.blocks = vit.norm = torch.nn.Identity()
        vit.patch_embed.bias.data.zero_()
        with torch.no_grad():
            ramp = torch.linspace(0, 1, 4).expand(4, 4).reshape(1, 16, 1)
            vit.pos_embed.copy_(ramp.expand_as(vit.pos_embed))
            wide = vit(torch.zeros(1, vit.patch_embed.in_channels, 8, 8))
        torch.testing.assert_close(wide[0, 0, 0], wide[0, 0, 5])
        assert (wide[0, 0, 0].diff() > -0.05).all() and wide[0, 0, 0, -1] > 0.9 > 0.1 > wide[0, 0, 0, 0]

    @pytest.mark.parametrize("level", range(3))
    def test_skips_matter(self, model: TransUNet, level: int) -> None:
        torch.manual_seed(0)
        with torch.no_grad():
            features = model.train().encode(images())
            other = [torch.zeros_like(f) if i == level else f for i, f in enumerate(features)]
            model.vit.eval()  # no dropout
            before, after = model.decode(features).seg_logits, model.decode(other).seg_logits
        assert (before - after).abs().max() > 1e-2

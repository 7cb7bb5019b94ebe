"""The assembled model: taps, shapes, wiring, ablations, weights; and its building blocks against NumPy."""

from __future__ import annotations

import copy
import itertools
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.signal import correlate2d
from scipy.stats import kstest
from torch import Tensor, nn
from torch.nn import functional as F

from btinet.config import PRESETS, VARIANTS, Experiment, Settings
from btinet.errors import InputError
from btinet.losses import focal_cross_entropy, segmentation_losses
from btinet.models.btinet import BTINet
from btinet.models.decoder import AttentionGate, DecoderLevel, Upsample2x
from btinet.models.encoder import Encoder
from btinet.models.mscf import DILATIONS, MSCF
from btinet.models.output import Output, Signals
from btinet.models.registry import build
from btinet.models.upa import UPA

TINY = Settings.model_validate(PRESETS["tiny"])
CLASSES = 3


def settings(variant: str) -> Settings:
    experiment = Experiment(name="test", datasets=({"name": "phantom"},), preset="tiny")
    return experiment.settings("phantom", "btinet", variant)


def tiny(variant: str = "full", seed: int = 0) -> BTINet:
    torch.manual_seed(seed)
    return BTINet(settings(variant).model, CLASSES).eval()


def images(count: int = 2, size: int = 64, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def tensors(output: Output) -> list[Tensor]:
    return [output.seg_logits, output.clf_logits, *(output.signals or ())]


def same(one: Output, other: Output) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


class Paper(NamedTuple):
    """The model of the paper's size and one pass through it."""

    model: BTINet
    hooked: list[Tensor]
    """What forward hooks see while timm's own forward runs."""
    taps: list[Tensor]
    features: list[Tensor]
    output: Output


@pytest.fixture(scope="module")
def paper() -> Paper:
    torch.manual_seed(0)
    model = BTINet(Settings().model, classes=7).eval()
    net, picture = model.encoder.net, images(1, 224)
    hooked: list[Tensor] = []
    sources = [*(net.blocks[stage][0].bn1 for stage in (1, 2, 3, 5)), net.bn2]
    hooks = [source.register_forward_hook(lambda _, __, tap: hooked.append(tap)) for source in sources]
    mean, std = (torch.tensor(net.default_cfg[key])[None, :, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        net.forward_features((picture - mean) / std)
        for hook in hooks:
            hook.remove()
        taps = model.encoder(picture)
        features = model.encode(picture)
        return Paper(model, hooked, taps, features[:5], model.decode(features))


class TestPaperSize:
    def test_taps(self, paper: Paper) -> None:
        expected = [(144, 112), (192, 56), (336, 28), (960, 14), (1792, 7)]
        assert [tuple(tap.shape) for tap in paper.taps] == [(1, c, s, s) for c, s in expected]
        assert paper.model.encoder.channels == [c for c, _ in expected]

    def test_taps_are_the_first_blocks_expansion_activations(self, paper: Paper) -> None:
        for tap, hooked in zip(paper.taps, paper.hooked, strict=True):
            assert torch.equal(tap, hooked)

    def test_context_keeps_the_taps_shapes(self, paper: Paper) -> None:
        assert [f.shape for f in paper.features] == [tap.shape for tap in paper.taps]

    def test_outputs(self, paper: Paper) -> None:
        assert paper.output.seg_logits.shape == (1, 1, 224, 224)
        assert paper.output.clf_logits.shape == (1, 7)
        assert all(signal.shape == (1, 4) for signal in paper.output.signals)
        assert all(torch.isfinite(tensor).all() for tensor in tensors(paper.output))

    def test_sizes(self, paper: Paper) -> None:
        model = paper.model
        assert count(model.encoder) == 17_548_616
        assert model.clf_head[0].in_features == 4304
        assert [level.conv[0].out_channels for level in model.levels] == [384, 192, 96, 48]
        assert [tim.tau for tim in model.tim] == [0.7] * 4

    def test_gates(self, paper: Paper) -> None:
        gates = paper.model.gates()
        assert [count(gate) for gate in gates] == [41_154, 28_866, 22_722, 19_650]
        assert count(gates) == 112_392
        names = {name for name, _ in paper.model.named_parameters() if name.startswith("upa.")}
        assert {f"upa.{name}" for name, _ in gates.named_parameters()} == names
        assert len(names) == 24


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class TestWiring:
    @pytest.mark.parametrize("size", [64, 96])
    def test_shapes(self, size: int) -> None:
        with torch.no_grad():
            output = tiny()(images(2, size))
        assert output.seg_logits.shape == (2, 1, size, size)
        assert output.clf_logits.shape == (2, CLASSES)
        assert all(signal.shape == (2, 4) for signal in output.signals)

    def test_forward_is_decode_after_encode(self) -> None:
        model, batch = tiny(), images()
        with torch.no_grad():
            assert same(model(batch), model.decode(model.encode(batch)))

    def test_samples_do_not_influence_each_other(self) -> None:
        model, batch = tiny(), images(3)
        with torch.no_grad():
            together, alone = model(batch), model(batch[1:2])
        for many, one in zip(tensors(together), tensors(alone), strict=True):
            torch.testing.assert_close(many[1:2], one, rtol=1e-4, atol=1e-5)

    def test_levels_start_from_bridge_s4_s3_s2_and_end_in_the_descriptor(self) -> None:
        model = tiny()
        starts: list[Tensor] = []
        ends: list[Tensor] = []
        descriptors: list[Tensor] = []
        for tim, upa in zip(model.tim, model.upa, strict=True):
            tim.register_forward_hook(lambda _, given, __: starts.append(given[1]))
            upa.register_forward_hook(lambda _, __, out: ends.append(out[1]))
        model.clf_head.register_forward_hook(lambda _, given, __: descriptors.append(given[0]))
        with torch.no_grad():
            features = model.encode(images())
            model.decode(features)
            _, s2, s3, s4, bridge, _ = (stage.mean((2, 3)) for stage in features)
            for level, stage in enumerate((bridge, s4, s3, s2)):
                torch.testing.assert_close(starts[level], model.clf_start[level](stage))
        torch.testing.assert_close(descriptors[0], torch.cat([s2, s3, s4, bridge, *ends], dim=1))

    def test_gated_map_is_what_the_next_level_and_the_head_upsample(self) -> None:
        model = tiny()
        gated: list[Tensor] = []
        upsampled: list[Tensor] = []
        for upa in model.upa:
            upa.register_forward_hook(lambda _, __, out: gated.append(out[0]))
        for up in (*(level.up for level in model.levels[1:]), model.seg_head.up):
            up.register_forward_hook(lambda _, given, __: upsampled.append(given[0]))
        with torch.no_grad():
            model(images())
        assert [g.shape[1:] for g in gated] == [(48, 4, 4), (32, 8, 8), (24, 16, 16), (16, 32, 32)]
        assert all(torch.equal(g, u) for g, u in zip(gated, upsampled, strict=True))

    def test_every_parameter_learns_from_the_two_task_losses(self) -> None:
        model = tiny().train()
        masks = torch.zeros(4, 1, 64, 64)
        masks[:3, :, 20:40, 10:50] = 1
        output = model(images(4))
        loss = segmentation_losses(output.seg_logits, masks, TINY.loss)["seg"]
        (loss + focal_cross_entropy(output.clf_logits, torch.tensor([0, 1, 2, 0]), 2.0)).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name

    def test_dropout_is_random_in_training_only(self) -> None:
        model, batch = tiny(), images()
        with torch.no_grad():
            assert same(model(batch), model(batch))
            model.train()
            assert not torch.equal(model(batch).seg_logits, model(batch).seg_logits)

    def test_a_seed_fixes_the_start_and_the_dropout(self) -> None:
        def outcome(seed: int) -> tuple[dict[str, Tensor], Output]:
            model = tiny(seed=seed).train()
            start = {name: value.clone() for name, value in model.state_dict().items()}
            with torch.no_grad():
                return start, model(images())

        (start, output), (again, repeated), (_, other) = outcome(5), outcome(5), outcome(6)
        assert all(torch.equal(start[name], again[name]) for name in start)
        assert same(output, repeated)
        assert not torch.equal(output.seg_logits, other.seg_logits)

    def test_safetensors_round_trip(self, tmp_path: Path) -> None:
        model, batch = tiny(seed=1), images()
        with torch.no_grad():
            model.train()(images(4, seed=9))  # moves the BatchNorm statistics, which must travel too
            expected = model.eval()(batch)
            save_file(model.state_dict(), tmp_path / "model.safetensors")
            other = tiny(seed=2)
            assert not same(other(batch), expected)
            other.load_state_dict(load_file(tmp_path / "model.safetensors"))
            assert same(other(batch), expected)


@pytest.fixture(scope="module")
def variants() -> dict[str, BTINet]:
    """Every variant with the full model's weights, so that only the structure can make a difference."""
    full, variants = tiny(), {}
    for variant in VARIANTS:
        model = tiny(variant, seed=3)
        own = model.state_dict()
        shared = {name: value for name, value in full.state_dict().items() if name in own}
        if variant == "linear-gate":
            shared = {name: value for name, value in shared.items() if ".mlp." not in name}
        missing, _ = model.load_state_dict(shared, strict=False)
        assert all(name.endswith((".mlp.weight", ".mlp.bias")) for name in missing)
        variants[variant] = model
    return variants


@pytest.fixture(scope="module")
def outputs(variants: dict[str, BTINet]) -> dict[str, Output]:
    with torch.no_grad():
        return {variant: model(images()) for variant, model in variants.items()}


def distance(one: Tensor, other: Tensor) -> float:
    """Largest difference, in standard deviations of ``one``."""
    return float((one - other).abs().max() / one.std())


class TestAblations:
    def test_all_differ(self, variants: dict[str, BTINet]) -> None:
        """In double precision: untrained, D1 changes the map by 6e-7 of its spread, rounding by some 1e-14."""
        with torch.no_grad():
            outputs = {name: copy.deepcopy(model).double()(images().double()) for name, model in variants.items()}
        assert same(outputs.pop("no-gate-loss"), outputs["full"]), "the same network, trained otherwise"
        for one, other in itertools.combinations(outputs, 2):
            assert distance(outputs[one].seg_logits, outputs[other].seg_logits) > 1e-8, (one, other)
            assert distance(outputs[one].clf_logits, outputs[other].clf_logits) > 1e-3, (one, other)

    def test_signals_come_with_upa_only(self, outputs: dict[str, Output]) -> None:
        with_signals = {variant for variant, output in outputs.items() if output.signals is not None}
        assert with_signals == {variant for variant in VARIANTS if settings(variant).model.upa}
        assert with_signals == VARIANTS.keys() - {"no-upa", "no-mscf-no-upa", "no-tim", "plain"}

    @pytest.mark.parametrize("variant", ["no-upa", "no-mscf-no-upa", "no-tim", "plain"])
    def test_no_gates_without_upa(self, variant: str) -> None:
        assert len(tiny(variant).gates()) == 0

    @pytest.mark.parametrize(("weight", "variant"), [(0, "no-tim"), (1, "no-upa")])
    def test_gates_at_0_and_1_are_the_model_without_tim_and_without_upa(
        self, outputs: dict[str, Output], weight: int, variant: str
    ) -> None:
        model = tiny()
        for gate in model.gates():
            nn.init.zeros_(gate.mlp[-1].weight)
            nn.init.constant_(gate.mlp[-1].bias, 1e4 * (2 * weight - 1))
        with torch.no_grad():
            output = model(images())
        assert output.signals.w_seg.tolist() == output.signals.w_clf.tolist() == [[weight] * 4] * 2
        torch.testing.assert_close(output.seg_logits, outputs[variant].seg_logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.clf_logits, outputs[variant].clf_logits, rtol=1e-4, atol=1e-5)


class TestGateAblations:
    def test_softmax_weights_sum_to_one(self, outputs: dict[str, Output]) -> None:
        signals = outputs["softmax-gate"].signals
        torch.testing.assert_close(signals.w_seg + signals.w_clf, torch.ones(2, 4))
        assert not torch.allclose(signals.w_seg, signals.w_clf)

    def test_linear_gate_is_a_sigmoid_of_the_three_signals(self) -> None:
        model = tiny("linear-gate")
        with torch.no_grad():
            signals = model(images()).signals
            for level, upa in enumerate(model.upa):
                u = torch.stack([signals.align, signals.seg_energy, signals.clf_energy], 2)[:, level]
                expected = torch.sigmoid(u @ upa.mlp.weight.T + upa.mlp.bias)
                torch.testing.assert_close(torch.stack([signals.w_seg, signals.w_clf], 2)[:, level], expected)

    @pytest.mark.parametrize("level", range(4))
    def test_a_level_without_gate_takes_the_whole_interaction(self, outputs: dict[str, Output], level: int) -> None:
        model = tiny(f"gate-off-D{level + 1}")
        assert model.gated_levels() == [other for other in range(4) if other != level]
        signals = outputs[f"gate-off-D{level + 1}"].signals
        assert (signals.w_seg[:, level] == 1).all() and (signals.w_clf[:, level] == 1).all()
        assert (signals.w_seg[:, model.gated_levels()] < 1).all()
        # as the full model with that level's gate forced to 1
        full = tiny()
        nn.init.constant_(full.upa[level].mlp[-1].bias, 1e4)
        with torch.no_grad():
            torch.testing.assert_close(
                outputs[f"gate-off-D{level + 1}"].seg_logits, full(images()).seg_logits, rtol=1e-4, atol=1e-5
            )

    @pytest.mark.parametrize("is_training", [True, False])
    def test_random_weights_know_nothing_of_the_sample_and_follow_the_seed(self, is_training: bool) -> None:
        model = tiny("random-gate").train(is_training)

        def drawn(seed: int, pictures: int = 1) -> Signals:
            torch.manual_seed(seed)
            with torch.no_grad():
                signals: Signals = model.decode(model.encode(images(4, seed=pictures))).signals
            return signals

        one, again, other = drawn(1), drawn(1), drawn(2)
        assert torch.equal(one.w_seg, again.w_seg) and torch.equal(one.w_clf, again.w_clf)
        assert len(torch.cat([one.w_seg, one.w_clf, other.w_seg, other.w_clf]).unique()) == 2 * 2 * 4 * 4
        assert torch.equal(drawn(1, pictures=2).w_seg, one.w_seg)
        assert not torch.equal(drawn(1, pictures=2).align, one.align)

    def test_random_weights_are_uniform(self) -> None:
        upa = UPA(8, 8, hidden=4, projection=4, gate="random").eval()
        torch.manual_seed(0)
        weights = upa.weights(torch.randn(4000, 3))
        assert kstest(weights.flatten().numpy(), "uniform").pvalue > 0.01
        assert abs(np.corrcoef(weights.T)[0, 1]) < 0.05

    @pytest.mark.parametrize("variant", ["full", "softmax-gate", "linear-gate", "gate-off-D2", "random-gate"])
    def test_what_can_learn_from_the_tasks_does(self, variant: str) -> None:
        """And the rest is frozen, so that data-parallel training does not wait for its gradients."""
        model = tiny(variant).train()
        output = model(images(4))
        (output.seg_logits.square().mean() + output.clf_logits.square().mean()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (parameter.grad is not None), name
        frozen = {name.split(".")[1] for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen == {"gate-off-D2": {"1"}, "random-gate": set("0123")}.get(variant, set())

    @pytest.mark.parametrize(
        ("variant", "gates"), [("full", 4), ("softmax-gate", 4), ("gate-off-D3", 3), ("random-gate", 0)]
    )
    def test_gates_are_those_that_learn(self, variant: str, gates: int) -> None:
        assert len(tiny(variant).gates()) == len(tiny(variant).gated_levels()) == gates


class TestPretrained:
    @pytest.fixture
    def weights(self) -> dict[str, Tensor]:
        """What a hub's file for B0 holds."""
        torch.manual_seed(7)
        net = Encoder("tf_efficientnet_b0").net
        tensors = {name: value.clone() for name, value in net.state_dict().items()}
        return tensors | {"classifier.weight": torch.zeros(1000, 1280), "classifier.bias": torch.zeros(1000)}

    @pytest.fixture
    def file(self, tmp_path: Path) -> Callable[[dict[str, Tensor]], Path]:
        def write(tensors: dict[str, Tensor]) -> Path:
            save_file(tensors, tmp_path / "weights.safetensors")
            return tmp_path / "weights.safetensors"

        return write

    def test_loads_everything_but_the_classifier(
        self,
        weights: dict[str, Tensor],
        file: Callable[[dict[str, Tensor]], Path],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        settings = TINY.model.model_copy(update={"encoder": "tf_efficientnet_b0"})
        model = build("btinet", settings, CLASSES, file(weights))
        loaded = model.encoder.net.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in loaded.items())
        assert not caplog.records

    def test_names_what_the_file_lacks(
        self,
        weights: dict[str, Tensor],
        file: Callable[[dict[str, Tensor]], Path],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        del weights["blocks.6.0.conv_pw.weight"], weights["bn1.num_batches_tracked"]
        encoder = Encoder("tf_efficientnet_b0")
        start = encoder.net.blocks[6][0].conv_pw.weight.clone()
        with caplog.at_level(logging.WARNING):
            encoder.load_pretrained(file(weights))
        (message,) = caplog.messages
        assert "has no blocks.6.0.conv_pw.weight: they start from random values" in message
        assert torch.equal(encoder.net.blocks[6][0].conv_pw.weight, start)
        assert torch.equal(encoder.net.conv_stem.weight, weights["conv_stem.weight"])

    def test_half_precision_is_widened(
        self, weights: dict[str, Tensor], file: Callable[[dict[str, Tensor]], Path]
    ) -> None:
        encoder = Encoder("tf_efficientnet_b0")
        encoder.load_pretrained(file(weights | {"conv_stem.weight": weights["conv_stem.weight"].half()}))
        assert encoder.net.conv_stem.weight.dtype == torch.float32
        assert torch.equal(encoder.net.conv_stem.weight, weights["conv_stem.weight"].half().float())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"conv_stem.weight": torch.zeros(48, 3, 3, 3)}, r"1 tensors do not fit .*conv_stem\.weight"),
            ({"encoder.stem": torch.zeros(1)}, r"1 tensors do not fit .*encoder\.stem"),
        ],
    )
    def test_refuses_what_does_not_fit(
        self,
        weights: dict[str, Tensor],
        file: Callable[[dict[str, Tensor]], Path],
        change: dict[str, Tensor],
        message: str,
    ) -> None:
        encoder = Encoder("tf_efficientnet_b0")
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        with pytest.raises(InputError, match=message):
            encoder.load_pretrained(file(weights | change))
        assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())

    def test_refuses_a_file_that_lacks_most(
        self, weights: dict[str, Tensor], file: Callable[[dict[str, Tensor]], Path]
    ) -> None:
        some = dict(itertools.islice(weights.items(), 20))
        with pytest.raises(InputError, match=r"\d\d\d are missing; the file must use timm's names"):
            Encoder("tf_efficientnet_b0").load_pretrained(file(some))

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a torch file", b"<html>not found</html>" * 9])
    def test_refuses_another_format(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "weights.pth").write_bytes(content)
        with pytest.raises(InputError, match=r"weights\.pth: not a safetensors file .*README"):
            Encoder("tf_efficientnet_b0").load_pretrained(tmp_path / "weights.pth")

    @pytest.mark.real_data
    def test_the_real_weights(self, shared: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = shared / "weights/tf_efficientnet_b4.imagenet-partial.safetensors"
        if not path.exists():
            pytest.skip(f"no weights at {path}")

        def taps(seed: int, load: bool) -> list[Tensor]:
            torch.manual_seed(seed)
            encoder = Encoder("tf_efficientnet_b4").eval()
            if load:
                encoder.load_pretrained(path)
            with torch.no_grad():
                return encoder(images(1, 64))

        with caplog.at_level(logging.WARNING):
            loaded = taps(seed=0, load=True)
        (message,) = caplog.messages
        assert message.endswith(
            "has no blocks.6.1.conv_pw.weight, blocks.6.1.conv_pwl.weight: they start from random values"
        )
        # the block without kernels starts as the identity, so the features do not depend on the seed
        assert all(torch.equal(a, b) for a, b in zip(loaded, taps(seed=1, load=True), strict=True))
        for tap, random in zip(loaded, taps(seed=0, load=False), strict=True):
            assert torch.isfinite(tap).all()
            assert (tap - random).abs().mean() > 0.1 * random.abs().mean()


class TestMSCF:
    def test_formula(self) -> None:
        torch.manual_seed(0)
        block = MSCF(16).double().eval()
        for branch in block.branches:  # statistics that do something
            branch[2].running_mean.normal_()
            branch[2].running_var.uniform_(0.5, 2)
            nn.init.normal_(branch[2].weight)
            nn.init.normal_(branch[2].bias)
        x = torch.randn(2, 16, 9, 11).double()
        with torch.no_grad():
            scales, actual = block.scale_weights(x).numpy(), block(x).numpy()
        assert np.ptp(scales) > 0.01
        mixed = np.zeros(x.shape)
        for index, (dilation, branch) in enumerate(zip((1, 2, 4), block.branches, strict=True)):
            mixed += scales[:, index, None, None, None] * self.separable(branch, x.numpy(), dilation)
        fused = np.einsum("oc,bchw->bohw", block.fuse.weight.detach()[:, :, 0, 0], mixed)
        fused += block.fuse.bias.detach().numpy()[:, None, None]
        np.testing.assert_allclose(actual, x.numpy() + fused, rtol=1e-10, atol=1e-12)

    @staticmethod
    def separable(branch: nn.Sequential, x: np.ndarray, dilation: int) -> np.ndarray:
        depthwise, pointwise, norm = (
            {**dict(layer.named_parameters()), **dict(layer.named_buffers())} for layer in branch[:3]
        )
        spread = np.empty_like(x)
        for b, c in np.ndindex(*x.shape[:2]):
            kernel = np.zeros((2 * dilation + 1, 2 * dilation + 1))
            kernel[::dilation, ::dilation] = depthwise["weight"].detach()[c, 0]
            spread[b, c] = correlate2d(x[b, c], kernel, mode="same")
        y = np.einsum("oc,bchw->bohw", pointwise["weight"].detach()[:, :, 0, 0], spread)
        column = {name: value.detach().numpy()[..., None, None] for name, value in norm.items()}
        y = (y - column["running_mean"]) / np.sqrt(column["running_var"] + 1e-5)
        return np.maximum(y * column["weight"] + column["bias"], 0)

    def test_dilations(self) -> None:
        assert DILATIONS == (1, 2, 4)

    def test_scale_weights_sum_to_1_for_each_sample(self) -> None:
        weights = MSCF(16).scale_weights(10 * torch.randn(5, 16, 6, 6))
        assert weights.shape == (5, 3)
        assert weights.min() >= 0
        assert weights.sum(1).tolist() == pytest.approx([1] * 5)
        assert weights.std(0).min() > 0

    def test_without_fusion_it_is_the_identity(self) -> None:
        block = MSCF(16)
        nn.init.zeros_(block.fuse.weight)
        nn.init.zeros_(block.fuse.bias)
        x = torch.randn(2, 16, 6, 6)
        assert torch.equal(block(x), x)


class TestDecoder:
    def test_upsampling_scatters_each_pixel_and_crops_the_end(self) -> None:
        torch.manual_seed(0)
        up, x = Upsample2x(2, 3).double(), torch.randn(2, 2, 3, 4).double()
        weight, bias = up.conv.weight.detach().numpy(), up.conv.bias.detach().numpy()
        full = np.zeros((2, 3, 7, 9))
        for i, j in np.ndindex(3, 4):
            patch = np.einsum("bc,cokl->bokl", x.numpy()[:, :, i, j], weight)
            full[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += patch
        expected = full[:, :, :6, :8] + bias[:, None, None]
        np.testing.assert_allclose(up(x).detach().numpy(), expected, rtol=1e-10, atol=1e-12)

    def test_upsampling_is_not_torchs_symmetric_padding(self) -> None:
        up, x = Upsample2x(2, 3), torch.randn(1, 2, 5, 5)
        padded = F.conv_transpose2d(x, up.conv.weight, up.conv.bias, 2, padding=1, output_padding=1)
        assert up(x).shape == padded.shape == (1, 3, 10, 10)
        assert not torch.allclose(up(x), padded)

    def test_attention(self) -> None:
        torch.manual_seed(0)
        gate = AttentionGate(5, 4, 3).double()
        skip, gating = torch.randn(2, 5, 4, 6).double(), torch.randn(2, 4, 4, 6).double()
        theta, phi, psi = (conv.weight.detach().numpy()[:, :, 0, 0] for conv in (gate.theta, gate.phi, gate.psi))
        inner = np.einsum("oc,bchw->bohw", theta, skip) + np.einsum("oc,bchw->bohw", phi, gating)
        inner = np.maximum(inner + gate.phi.bias.detach().numpy()[:, None, None], 0)
        score = np.einsum("oc,bchw->bohw", psi, inner) + gate.psi.bias.detach().numpy()[:, None, None]
        alpha = 1 / (1 + np.exp(-score))
        assert alpha.shape == (2, 1, 4, 6)
        assert np.ptp(alpha) > 0.01
        np.testing.assert_allclose(gate.attention(skip, gating).detach().numpy(), alpha, rtol=1e-10)
        np.testing.assert_allclose(gate(skip, gating).detach().numpy(), alpha * skip.numpy(), rtol=1e-10)

    def test_attention_lies_between_0_and_1(self) -> None:
        alpha = AttentionGate(5, 4, 3).attention(5 * torch.randn(4, 5, 8, 8), 5 * torch.randn(4, 4, 8, 8))
        assert alpha.min() > 0
        assert alpha.max() < 1

    def test_a_closed_gate_hides_the_skip(self) -> None:
        level = DecoderLevel(6, 5, 4, dropout=0.0).eval()
        below, skip, other = torch.randn(1, 6, 4, 4), torch.randn(1, 5, 8, 8), torch.randn(1, 5, 8, 8)
        assert not torch.allclose(level(below, skip), level(below, other))
        nn.init.zeros_(level.gate.psi.weight)
        nn.init.constant_(level.gate.psi.bias, -1e4)
        assert torch.equal(level(below, skip), level(below, other))


def test_an_unknown_method_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match=r"'nonet' is unknown; choose from .*btinet"):
        build("nonet", TINY.model, CLASSES)


@pytest.mark.parametrize("name", ["resnet50", "tf_efficientnetv2_s", "tf_efficientnet_b99", "tinynet_z", ""])
def test_another_encoder_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"model\.encoder: '{name}' is not one of timm's tf_efficientnet_b"):
        Encoder(name)


@pytest.mark.parametrize("name", ["tf_efficientnet_b0", "efficientnet_b1_pruned", "efficientnet_blur_b0", "tinynet_e"])
def test_every_family_computes_what_timm_computes(name: str) -> None:
    encoder, batch = Encoder(name).eval(), images(1)
    with torch.no_grad():
        taps = encoder(batch)
        assert torch.equal(taps[-1], encoder.net.forward_features((batch - encoder.mean) / encoder.std))
    assert [tap.shape[1] for tap in taps] == encoder.channels


def test_models_need_no_orchestration() -> None:
    code = """
import sys
import btinet.models.registry, btinet.losses, btinet.metrics
print(sorted({name.split(".")[0] for name in sys.modules} & {"prefect", "ray", "dvc"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

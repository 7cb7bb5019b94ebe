"""What holds for every method; a method's own test subclasses MethodTester, sets ``method`` and adds its property."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from btinet.config import PRESETS, ModelSettings
from btinet.models.method import Method
from btinet.models.output import Output
from btinet.models.place import for_inference

CLASSES = 3
PAPER = ModelSettings()
TINY = ModelSettings.model_validate(PRESETS["tiny"]["model"])


def images(size: int = 64, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def tensors(output: Output) -> list[torch.Tensor]:
    """Every tensor of an output: the prediction, then the heads."""
    pairs = [(output.seg_logits, output.clf_logits), *((head.seg_logits, head.clf_logits) for head in output.heads)]
    return [tensor for pair in pairs for tensor in pair if tensor is not None]


class MethodTester:
    """Inherit, set the class attributes, and pytest finds the tests."""

    method: type[Method]
    parameters: tuple[float, float]
    """Band of the parameter count in millions, preset ``paper``, K=3 (paper notes, section 1)."""
    random_in_eval = False

    @pytest.fixture
    def model(self) -> Method:
        torch.manual_seed(0)
        return self.method(TINY, CLASSES)

    def test_about(self) -> None:
        about = self.method.about
        assert about.title and about.citation
        assert about.tasks in (("seg",), ("seg", "clf"))

    # the last two are odd multiples of 32
    @pytest.mark.parametrize("size", [224, 96, 160])
    @pytest.mark.parametrize("training", [True, False])
    def test_shapes(self, model: Method, size: int, training: bool) -> None:
        output = model.train(training)(images(size))
        self.check_shapes(output, size)

    def check_shapes(self, output: Output, size: int) -> None:
        assert output.seg_logits.shape == (2, 1, size, size)
        if "clf" in self.method.about.tasks:
            assert output.clf_logits is not None and output.clf_logits.shape == (2, CLASSES)
        else:
            assert output.clf_logits is None
        assert output.signals is None
        for head in output.supervised():
            assert head.weight > 0
            assert head.seg_logits is None or head.seg_logits.shape == (2, 1, size, size)
            assert head.clf_logits is None or head.clf_logits.shape == (2, CLASSES)
        assert all(tensor.isfinite().all() for tensor in tensors(output))

    def test_a_gradient_reaches_every_parameter(self, model: Method) -> None:
        # two draws: dropout and ReLU may hide a path once
        generator = torch.Generator().manual_seed(1)
        reached: set[str] = set()
        for _ in range(2):
            with torch.no_grad():  # away from zero-initialised parts, which pass no gradient on
                for parameter in model.parameters():
                    parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
            model.zero_grad()
            total = sum(
                (head.weight * (tensor * torch.randn(tensor.shape, generator=generator)).sum())
                for head in model.train()(images(96, 4)).supervised()
                for tensor in (head.seg_logits, head.clf_logits)
                if tensor is not None
            )
            assert isinstance(total, torch.Tensor)
            total.backward()  # type: ignore[no-untyped-call]
            reached |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert {name for name, _ in model.named_parameters()} - reached == set()

    def test_in_bfloat16(self, model: Method) -> None:
        """Float32 comes out, near the float32 model's, and a gradient reaches the float32 weights."""
        model.eval()
        with torch.no_grad():
            exact = model(images())
            model.precision = "bfloat16"
            rounded = model(images())
        for a, b in zip(tensors(exact), tensors(rounded), strict=True):
            assert b.dtype == torch.float32 and not torch.equal(a, b)
            torch.testing.assert_close(b, a, rtol=0.1, atol=0.1 * float(a.abs().max()))
        total = sum(tensor.sum() for tensor in tensors(model.train()(images(96, 4))))
        assert isinstance(total, torch.Tensor)
        total.backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert gradients and {gradient.dtype for gradient in gradients} == {torch.float32}
        assert all(gradient.isfinite().all() for gradient in gradients)

    def test_for_inference_it_computes_the_same(self, model: Method) -> None:
        torch.manual_seed(1)
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after a training
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 2)
        with torch.no_grad():
            before = tensors(model(images()))
            after = tensors(for_inference(model)(images()))
        for a, b in zip(before, after, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5 * float(a.abs().max()))

    def test_parameter_count(self) -> None:
        with torch.device("meta"):
            model = self.method(PAPER, CLASSES)
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        low, high = self.parameters
        assert low <= millions <= high

    def test_save_and_load(self, model: Method) -> None:
        torch.manual_seed(1)
        other = self.method(TINY, CLASSES)
        weights = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
        other.load_state_dict(load(weights))
        with torch.no_grad():
            for a, b in zip(tensors(model.eval()(images())), tensors(other.eval()(images())), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)

    def test_seeded(self, model: Method) -> None:
        torch.manual_seed(0)
        again = self.method(TINY, CLASSES)
        for step in (model, again):
            step.train()
        results = []
        for network in (model, again):
            torch.manual_seed(5)
            results.append(tensors(network(images())))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)

    def test_encoding_is_not_random_in_evaluation(self, model: Method) -> None:
        model.eval()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.train()  # as Monte Carlo dropout does
        with torch.no_grad():
            first, second = model.encode(images()), model.encode(images())
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)

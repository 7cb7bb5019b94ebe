"""What makes the model fast changes no number: its convolutions, its layout, and its form for inference."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from benchmarks.speed import PlainUpsample2x, plainly
from btinet.config import PRESETS, LossSettings, ModelSettings, StageSettings
from btinet.models.btinet import BTINet
from btinet.models.decoder import Upsample2x
from btinet.models.mscf import DilatedDepthwise
from btinet.models.place import for_inference, place
from btinet.ranks import Ranks
from btinet.training.tasks import Batch, Stage1Task
from tests.models.baselines.tester import CLASSES, TINY, images

CPU = torch.device("cpu")
STEPS = 10
LEARNING_RATE = StageSettings().learning_rate
"""At three times that, Adam makes 2e-5 of the losses' rounding within five steps, whatever the form of the model."""


class TestConvolutions:
    @pytest.mark.parametrize("dilation", [1, 2, 4])
    @pytest.mark.parametrize("size", [(28, 28), (14, 13), (7, 9)])
    def test_dilated_is_torchs_own(self, dilation: int, size: tuple[int, int]) -> None:
        torch.manual_seed(0)
        fast = DilatedDepthwise(6, dilation).double()
        plain = nn.Conv2d(6, 6, 3, padding=dilation, dilation=dilation, groups=6, bias=False).double()
        plain.load_state_dict(fast.state_dict())
        self.check_same(fast, plain, torch.rand(2, 6, *size, dtype=torch.double))

    def test_upsampling_is_torchs_own(self) -> None:
        torch.manual_seed(0)
        fast, plain = Upsample2x(6, 4).double(), PlainUpsample2x(6, 4).double()
        plain.load_state_dict(fast.state_dict())
        self.check_same(fast, plain, torch.rand(2, 6, 5, 7, dtype=torch.double))

    @staticmethod
    def check_same(fast: nn.Module, plain: nn.Module, x: torch.Tensor) -> None:
        """Values and all gradients, in both memory layouts."""
        for layout in (torch.contiguous_format, torch.channels_last):
            results = []
            for module in (fast, plain):
                inputs = x.clone(memory_format=layout).requires_grad_()
                outputs = module(inputs)
                probe = torch.rand(outputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)
                results.append([outputs, *torch.autograd.grad((outputs * probe).sum(), [inputs, *module.parameters()])])
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def batch() -> Batch:
    masks = torch.zeros(4, 1, 64, 64)
    masks[:, :, 10:40, 20:50] = 1
    return Batch(images(64, 4), masks, torch.tensor([0, 1, 2, 0]), torch.arange(4).numpy())


def losses(model: BTINet, fused: bool) -> list[float]:
    """Of the first steps of stage 1."""
    task = Stage1Task(model.train(), LossSettings())
    optimizer = torch.optim.Adam(task.parameters(), lr=LEARNING_RATE, fused=fused)
    found = []
    for _ in range(STEPS):
        terms = task(batch(), Ranks.alone())
        loss = task.balance().total(terms)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(loss.item())
    return found


def fresh(precision: str = "float32") -> BTINet:
    """Without dropout, whose random numbers follow the memory layout."""
    torch.manual_seed(0)
    settings = PRESETS["tiny"]["model"] | {"dropout": 0.0, "precision": precision}
    return BTINet(ModelSettings.model_validate(settings), CLASSES)


class TestTraining:
    def test_float32_as_plainly(self) -> None:
        fast, plain = losses(place(fresh(), CPU), fused=True), losses(plainly(fresh()), fused=False)
        assert fast == pytest.approx(plain, rel=1e-5)
        assert plain[-1] < plain[0]

    def test_bfloat16_nearly_so(self) -> None:
        """Stated in docs/performance.md: within 2 % over the first steps."""
        rounded, exact = losses(place(fresh("bfloat16"), CPU), fused=True), losses(plainly(fresh()), fused=False)
        assert rounded != exact
        assert rounded == pytest.approx(exact, rel=0.02)


class TestBfloat16:
    def test_convolutions_have_it_and_gates_do_not(self) -> None:
        model = fresh("bfloat16").eval()
        seen: dict[str, torch.dtype] = {}
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.dtype}))
        output = model(images())
        assert output.signals is not None and {signal.dtype for signal in output.signals} == {torch.float32}
        in_full = {name for name, dtype in seen.items() if dtype == torch.float32}
        assert {name.split(".")[0] for name in in_full} == {"clf_start", "tim", "upa", "clf_head"}
        assert seen["encoder.net.conv_stem"] == seen["levels.3.conv.0"] == torch.bfloat16

    def test_for_inference_the_weights_have_it(self) -> None:
        model = fresh("bfloat16").eval()
        with torch.no_grad():
            before = model(images())
            after = for_inference(model)(images())
        assert model.encoder.net.conv_stem.weight.dtype == torch.bfloat16
        torch.testing.assert_close(after.seg_logits, before.seg_logits, rtol=0.05, atol=0.05)


FAULTS = """
import resource, torch
from btinet.models.place import keep_freed_memory
if {keep}:
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(64 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(4):  # the heap takes a few to settle
    faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told so")
def test_freed_memory_is_kept() -> None:
    """Another tensor of 256 MB takes no new pages, as it does without."""

    def faults(keep: bool) -> int:
        script = FAULTS.format(keep=keep)
        return int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)

    assert faults(keep=True) < 100
    assert faults(keep=False) > 100


def test_place_is_channels_last() -> None:
    model = place(fresh(), CPU)
    assert model.levels[0].conv[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert TINY.precision == model.precision == "float32"

"""Two processes with half the batch each must give the numbers of one process with the whole batch.

One pair of gloo processes computes everything (:func:`work`); the tests compare what it left behind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import btinet.torchvision_compat  # noqa: F401  isort: skip  (must come before timm)
from timm.layers import BatchNormAct2d, DropPath

from btinet.config import PRESETS, LossSettings, Settings
from btinet.losses import focal_cross_entropy, gate_loss, segmentation_losses
from btinet.models.btinet import BTINet
from btinet.ranks import Ranks, own_draws, synchronise_batchnorm, synchronise_dropout

RANKS, HALF = 2, 3

VALUES: dict[str, tuple[list[float], list[float]]] = {
    "both": ([0.3, 0.9], [0.1, 0.5, 0.4]),
    "first empty": ([], [0.2, 0.7]),
    "second empty": ([-4.0], []),
    "both empty": ([], []),
    "negative": ([-0.5, -0.25], [-3.0]),
}

LESIONS = {  # which of the six samples have a lesion; the first three are rank 0's
    "equal": [0, 1, 3, 4],
    "unequal": [0, 3, 4],
    "all": [0, 1, 2, 3, 4, 5],
    "none on rank 0": [3, 4],
    "none on rank 1": [0, 1, 2],
    "one in all": [5],
    "none at all": [],
}


class Mixture(nn.Module):
    """Every kind of BatchNorm that the models use."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, bias=False),
            BatchNormAct2d(8, eps=1e-3, act_layer=nn.SiLU),
        )
        self.head = nn.Sequential(nn.Linear(8, 5), nn.ReLU(inplace=True), nn.BatchNorm1d(5), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


def mixture() -> Mixture:
    torch.manual_seed(0)
    return Mixture()


def images(size: int) -> Tensor:
    """Six images; rank 1's are brighter, so that each rank's own statistics are not the batch's."""
    x = torch.rand(RANKS * HALF, 3, size, size, generator=torch.Generator().manual_seed(1))
    x[HALF:] += 0.7
    return x


LABELS = torch.tensor([0, 1, 2, 2, 0, 1])


def train_mixture(model: nn.Module, part: slice) -> dict[str, Any]:
    """Two SGD steps; what came out, the last gradients, and the model's state."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        logits = model(images(8)[part])
        focal_cross_entropy(logits, LABELS[part], 2.0).backward()
        optimizer.step()
    plain = getattr(model, "module", model)
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    plain.eval()
    return {
        "outputs": logits.detach(),
        "gradients": gradients,
        "state": plain.state_dict(),
        "evaluated": plain(images(8)[part]).detach(),
    }


def tiny_btinet() -> BTINet:
    torch.manual_seed(0)
    settings = Settings.model_validate(PRESETS["tiny"]).model.model_copy(update={"dropout": 0.0})
    return BTINet(settings, 3).double().train()


def pass_btinet(model: nn.Module, part: slice) -> dict[str, Any]:
    """One pass in double precision, forward and backward."""
    x = images(64)[part].double()
    output = model(x)
    masks = (x.mean(1, keepdim=True) > 0.6).double()
    loss = segmentation_losses(output.seg_logits, masks, LossSettings())["seg"]
    (loss + focal_cross_entropy(output.clf_logits, LABELS[part], 2.0)).backward()
    plain = getattr(model, "module", model)
    return {
        "outputs": torch.cat([output.seg_logits.flatten(1), output.clf_logits, *output.signals], dim=1).detach(),
        "gradients": {name: parameter.grad for name, parameter in plain.named_parameters()},
        "state": plain.state_dict(),
    }


def judge_gates(lesions: list[int], part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Gate loss and its gradients with respect to the two gates."""
    generator = torch.Generator().manual_seed(5)
    samples = RANKS * HALF
    seg_logits = torch.randn(samples, 1, 6, 6, generator=generator)
    clf_logits = torch.randn(samples, 3, generator=generator)
    masks = (torch.rand(samples, 1, 6, 6, generator=generator) < 0.5).float()
    masks[[i for i in range(samples) if i not in lesions]] = 0
    weights = [torch.rand(samples, 4, generator=generator)[part].requires_grad_() for _ in range(2)]
    loss = gate_loss(*weights, seg_logits[part], clf_logits[part], masks[part], Ranks())
    return loss.detach(), *torch.autograd.grad(loss, weights)


def drop(part: slice, synchronised: bool) -> Tensor:
    """Samples that went through every kind of dropout there is in the models."""
    model = nn.Sequential(nn.Dropout(0.3), nn.Dropout2d(0.3), DropPath(0.3)).train()
    if synchronised:
        synchronise_dropout(model)
    torch.manual_seed(3)
    x = torch.arange(1.0, RANKS * HALF * 80 + 1).view(RANKS * HALF, 5, 4, 4)[part]
    output: Tensor = model(x.to(memory_format=torch.channels_last))
    return output


def bfloat16_batchnorm(part: slice, synchronised: bool) -> dict[str, Tensor]:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)).train()
    torch.nn.init.constant_(model[0].weight, 0.1)
    if synchronised:
        synchronise_batchnorm(model)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images(8)[part])
    return {"output": output.detach()} | model.state_dict()


def gumbel(part: slice) -> Tensor:
    """Gates of images, as DynaShare draws them."""
    torch.manual_seed(4)
    logits = torch.linspace(-1, 1, RANKS * HALF * 2).view(-1, 2)[part]
    return own_draws(lambda x: F.gumbel_softmax(x), logits)


def min_max(ranks: Ranks, values: list[float]) -> tuple[Tensor, Tensor]:
    """Of these among others that are not counted."""
    return ranks.min_max(torch.tensor([-9.0, *values, 9.0]), torch.tensor([False, *[True] * len(values), False]))


def work(rank: int, folder: str) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    try:
        ranks = Ranks()
        part = slice(rank * HALF, (rank + 1) * HALF)
        found: dict[str, Any] = {"place": (ranks.size, ranks.rank, ranks.is_first)}
        found["sum"] = ranks.sum(torch.tensor([1.0 + rank, 10.0]))
        kept = torch.tensor([rank + 1, 5])
        found["sum int"], found["kept"] = ranks.sum(kept), kept
        found["min_max"] = {name: min_max(ranks, values[rank]) for name, values in VALUES.items()}
        found["gates"] = {name: judge_gates(lesions, part) for name, lesions in LESIONS.items()}
        for name, synchronise in (("synchronised", True), ("plain", False)):
            model = mixture()
            if synchronise:
                synchronise_batchnorm(model)
            found[name] = train_mixture(DistributedDataParallel(model, broadcast_buffers=False), part)
        model = tiny_btinet()
        synchronise_batchnorm(model)
        found["btinet"] = pass_btinet(DistributedDataParallel(model, broadcast_buffers=False), part)
        found["bfloat16"] = bfloat16_batchnorm(part, synchronised=True)
        found["gumbel"] = gumbel(part)
        found["dropout"], found["plain dropout"] = drop(part, synchronised=True), drop(part, synchronised=False)
        ranks.barrier()
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def whole_mixture() -> dict[str, Any]:
    return train_mixture(mixture(), slice(None))


@pytest.fixture(scope="module")
def whole_btinet() -> dict[str, Any]:
    return pass_btinet(tiny_btinet(), slice(None))


def assert_all_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_dropout_masks_are_those_of_the_whole_batch(found: list[dict[str, Any]]) -> None:
    whole = drop(slice(None), synchronised=False)
    assert 0 < int((whole == 0).sum()) < whole.numel()
    torch.testing.assert_close(torch.cat([each["dropout"] for each in found]), whole, rtol=1e-6, atol=0)
    assert not torch.equal(torch.cat([each["plain dropout"] for each in found]) == 0, whole == 0)


def test_draws_are_those_of_the_whole_batch(found: list[dict[str, Any]]) -> None:
    assert torch.equal(torch.cat([each["gumbel"] for each in found]), gumbel(slice(None)))


def test_batchnorm_of_bfloat16_is_torchs(found: list[dict[str, Any]]) -> None:
    whole = bfloat16_batchnorm(slice(None), synchronised=False)
    together = torch.cat([each["bfloat16"].pop("output") for each in found])
    assert together.dtype == whole["output"].dtype == torch.bfloat16
    torch.testing.assert_close(together, whole.pop("output"), rtol=1e-2, atol=1e-2)
    for each in found:
        assert_all_close(each["bfloat16"], whole, 1e-5)


class TestBatchNorm:
    """Outputs, gradients (averaged by DistributedDataParallel) and statistics."""

    def test_outputs(self, found: list[dict[str, Any]], whole_mixture: dict[str, Any]) -> None:
        for when in ("outputs", "evaluated"):
            together = torch.cat([each["synchronised"][when] for each in found])
            torch.testing.assert_close(together, whole_mixture[when], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("rank", range(RANKS))
    @pytest.mark.parametrize("what", ["gradients", "state"])
    def test_gradients_parameters_and_statistics(
        self, found: list[dict[str, Any]], whole_mixture: dict[str, Any], rank: int, what: str
    ) -> None:
        assert_all_close(found[rank]["synchronised"][what], whole_mixture[what], 1e-5)

    def test_the_plain_ones_would_differ(self, found: list[dict[str, Any]], whole_mixture: dict[str, Any]) -> None:
        together = torch.cat([each["plain"]["outputs"] for each in found])
        assert (together - whole_mixture["outputs"]).abs().max() > 0.1
        own = [each["plain"]["state"]["features.1.running_mean"] for each in found]
        assert (own[0] - own[1]).abs().max() > 0.01

    def test_the_whole_model(self, found: list[dict[str, Any]], whole_btinet: dict[str, Any]) -> None:
        together = torch.cat([each["btinet"]["outputs"] for each in found])
        torch.testing.assert_close(together, whole_btinet["outputs"], rtol=1e-6, atol=1e-6)
        for each in found:
            assert_all_close(each["btinet"]["gradients"], whole_btinet["gradients"], 1e-6)
            assert_all_close(each["btinet"]["state"], whole_btinet["state"], 1e-6)


class TestReductions:
    def test_places(self, found: list[dict[str, Any]]) -> None:
        assert [each["place"] for each in found] == [(2, 0, True), (2, 1, False)]

    def test_sum(self, found: list[dict[str, Any]]) -> None:
        for rank, each in enumerate(found):
            assert each["sum"].tolist() == [3, 20]
            assert each["sum int"].tolist() == [3, 10]
            assert each["kept"].tolist() == [rank + 1, 5]

    @pytest.mark.parametrize("case", VALUES)
    def test_min_max(self, found: list[dict[str, Any]], case: str) -> None:
        everything = [*VALUES[case][0], *VALUES[case][1]]
        expected = (min(everything), max(everything)) if everything else (float("inf"), float("-inf"))
        for each in found:
            assert tuple(extreme.item() for extreme in each["min_max"][case]) == pytest.approx(expected)

    @pytest.mark.parametrize("case", LESIONS)
    def test_gate_loss(self, found: list[dict[str, Any]], case: str) -> None:
        loss, *gradients = judge_gates(LESIONS[case], slice(None))
        mean = torch.stack([each["gates"][case][0] for each in found]).mean()
        torch.testing.assert_close(mean, loss)
        for index, gradient in enumerate(gradients, start=1):
            parts = torch.cat([each["gates"][case][index] for each in found]) / RANKS
            torch.testing.assert_close(parts, gradient)
            assert gradient.abs().max() > 0 or len(LESIONS[case]) < 2


class TestAlone:
    def test_place(self) -> None:
        ranks = Ranks()
        assert (ranks.size, ranks.rank, ranks.is_first) == (1, 0, True)

    def test_reductions_are_identities(self) -> None:
        values = torch.tensor([0.5, -1.0, 3.0])
        assert Ranks().sum(values) is values
        assert [extreme.item() for extreme in Ranks().min_max(values, values < 1)] == [-1, 0.5]
        assert [extreme.item() for extreme in Ranks().min_max(values, values > 3)] == [float("inf"), float("-inf")]
        Ranks().barrier()

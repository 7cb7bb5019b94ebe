"""Two processes with half of each batch train what one process trains with the whole batch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from btinet.config import BoundRun
from btinet.errors import InputError
from btinet.partitions import read_partition
from btinet.storage import Storage
from btinet.training.outputs import epochs_file
from btinet.training.stage import train_stage
from tests.training.micro import CPU, Bench, bench

CHANGES: dict[str, dict[str, Any]] = {
    "model": {"dropout": 0.3, "drop_path": 0.2},
    "train": {
        "batch_size": 8,
        "val_batch_size": 16,  # one batch of validation samples, so the second process has none
        "stage1": {"epochs": 2, "learning_rate": 1e-4},
    },
}
STAGES = pytest.mark.parametrize("stage", [1, 2])
BALANCES = ["adaptive", "uncertainty", "gradnorm", "pcgrad"]


def work(rank: int, folder: str, bound: BoundRun) -> None:
    """What each of the two processes does: stage 1 in one storage, stage 2 in the other."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for stage in (1, 2):
        receipt = train_stage(bound, stage, Storage(f"{folder}/stage{stage}"), CPU)
        assert (receipt is None) == (rank == 1)
    odd = bound.model_dump()
    odd["run"]["settings"]["train"]["batch_size"] = 7
    with pytest.raises(InputError, match=r"train.batch_size 7 cannot be shared by 2 workers"):
        train_stage(BoundRun.model_validate(odd), 1, Storage(f"{folder}/stage1"), CPU)
    drawn = bound.model_dump()
    drawn["run"]["settings"]["model"]["gate"] = "random"
    with pytest.raises(InputError, match=r"model.gate: random .* with resources.workers 1"):
        train_stage(BoundRun.model_validate(drawn), 1, Storage(f"{folder}/stage1"), CPU)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    one = bench(tmp_path_factory.mktemp("one"), tmp_path_factory.getbasetemp(), **CHANGES)
    one.train(1, 2)
    return one


@pytest.fixture(scope="module")
def two(one: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Storage]:
    """What the two processes left, by stage. Stage 2 starts from what one process left of stage 1."""
    folder = tmp_path_factory.mktemp("two")
    source = Path(one.root.path)
    for stage in (1, 2):
        shutil.copytree(source / "datasets", folder / f"stage{stage}/datasets")
    shutil.copytree(one.folder(1), folder / f"stage2/runs/{one.bound.run_id}/stage1")
    history = epochs_file(one.root, one.bound, 1)
    epochs_file(Storage(str(folder / "stage2")), one.bound, 1).upload(Path(history.path))
    mp.spawn(work, (str(folder), one.bound), nprocs=2)
    return {stage: Storage(str(folder / f"stage{stage}")) for stage in (1, 2)}


def history(bound: BoundRun, stage: int, root: Storage) -> pa.Table:
    return read_partition(epochs_file(root, bound, stage)).drop_columns(["seconds"])


@STAGES
def test_same_history(one: Bench, two: dict[int, Storage], stage: int) -> None:
    assert_same_history(one, two[stage], stage)


def assert_same_history(one: Bench, two: Storage, stage: int, tolerance: float = 5e-4) -> None:
    expected = history(one.bound, stage, one.root).to_pylist()
    found = history(one.bound, stage, two).to_pylist()
    assert len(found) == 2
    for row, wanted in zip(found, expected, strict=True):
        numbers = {name: value for name, value in wanted.items() if isinstance(value, float)}
        assert {name: row[name] for name in numbers} == pytest.approx(numbers, rel=tolerance, abs=1e-6)
        assert {name: row[name] for name in wanted.keys() - numbers.keys()} == {
            name: wanted[name] for name in wanted.keys() - numbers.keys()
        }


@STAGES
def test_same_weights(one: Bench, two: dict[int, Storage], stage: int) -> None:
    assert_same_weights(one, two[stage], stage)


def assert_same_weights(one: Bench, two: Storage, stage: int) -> None:
    """What training changed is the same; single weights may differ, as Adam makes much of gradients that are rounding
    errors."""
    name = f"runs/{one.bound.run_id}/stage{stage}/model.safetensors"
    found, expected = load_file(Path(two.path) / name), load_file(Path(one.root.path) / name)
    before = one.task(1).model.state_dict() if stage == 1 else load_file(one.folder(1) / "model.safetensors")
    assert found.keys() == expected.keys()
    trained = [name for name in expected if not torch.equal(expected[name], before[name])]
    assert len(trained) > (100 if stage == 1 else 10)

    def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
        return sum((one[name].double() - other[name].double()).square().sum().item() for name in trained) ** 0.5

    tolerance = 1e-3 if stage == 1 else 1e-2  # of the gates' few weights one such alone is three thousandths
    assert distance(found, expected) < tolerance * distance(expected, before)
    for name in expected.keys() - set(trained):
        assert torch.equal(found[name], expected[name])


def test_same_batchnorm_statistics(one: Bench, two: dict[int, Storage]) -> None:
    name = f"runs/{one.bound.run_id}/stage1/model.safetensors"
    found, expected = load_file(Path(two[1].path) / name), load_file(Path(one.root.path) / name)
    statistics = [name for name in expected if name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert len(statistics) > 100
    for name in statistics:
        torch.testing.assert_close(found[name], expected[name], rtol=5e-3, atol=1e-4)


def work_on_all(rank: int, folder: str, bounds: dict[str, BoundRun]) -> None:
    """Stage 1 of each run in a storage of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for name, bound in bounds.items():
        train_stage(bound, 1, Storage(f"{folder}/{name}"), CPU)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Bench, Storage]]:
    """A method with five pairs of heads under every balance that has a part in the step: by one process, by two."""
    ones, folder = {}, tmp_path_factory.mktemp("balanced-two")
    for name in BALANCES:
        stage1 = {"epochs": 2, "learning_rate": 1e-6}  # its BatchNorms over 1x1 maps make much of rounding errors
        changes = CHANGES | {
            "methods": ["mti-net"],
            "loss": {"balance": name},
            "train": CHANGES["train"] | {"stage1": stage1},
        }
        ones[name] = bench(tmp_path_factory.mktemp("balanced"), tmp_path_factory.getbasetemp(), **changes)
        ones[name].train(1)
        shutil.copytree(Path(ones[name].root.path) / "datasets", folder / f"{name}/datasets")
    mp.spawn(work_on_all, (str(folder), {name: one.bound for name, one in ones.items()}), nprocs=2)
    return {name: (one, Storage(str(folder / name))) for name, one in ones.items()}


@pytest.mark.slow
@pytest.mark.parametrize("balance", BALANCES)
def test_same_numbers_with_several_heads(balanced: dict[str, tuple[Bench, Storage]], balance: str) -> None:
    one, two = balanced[balance]
    assert_same_history(one, two, 1, tolerance=1e-4)
    assert_same_weights(one, two, 1)
    weights, found = (history(one.bound, 1, root)["seg_weight"].to_pylist() for root in (one.root, two))
    assert found == pytest.approx(weights, rel=1e-5)
    assert (weights[0] != weights[1]) == (balance in ("uncertainty", "gradnorm"))

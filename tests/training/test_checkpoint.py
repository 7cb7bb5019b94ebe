"""Which files a stage's checkpoints are, and which of them are read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from btinet.errors import InputError
from btinet.storage import Storage
from btinet.training.checkpoint import Checkpoints, pack, pack_best

CPU = torch.device("cpu")


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    """Epochs 1 to 3 were saved."""
    checkpoints = Checkpoints(Storage(str(tmp_path)))
    for epoch in (1, 2, 3):
        checkpoints.write(epoch, pack(state(epoch)))
    return checkpoints


def state(epoch: int) -> dict[str, Any]:
    return {"weights": torch.arange(4) + epoch, "best": {"value": 0.5, "epoch": epoch}, "history": [{"loss": 0.1}]}


def epoch_of(found: dict[str, Any] | None) -> int | None:
    return None if found is None else found["best"]["epoch"]


def test_the_last_two_are_kept(kept: Checkpoints, tmp_path: Path) -> None:
    names = ["epoch-0002.json", "epoch-0002.pt", "epoch-0003.json", "epoch-0003.pt"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    found = kept.latest(CPU)
    assert found is not None
    assert torch.equal(found.pop("weights"), torch.tensor([3, 4, 5, 6]))
    assert found == {"best": {"value": 0.5, "epoch": 3}, "history": [{"loss": 0.1}]}


def test_order_is_by_number_beyond_9(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Storage(str(tmp_path)))
    for epoch in range(8, 12):
        checkpoints.write(epoch, pack(state(epoch)))
    assert epoch_of(checkpoints.latest(CPU)) == 11
    assert sorted(file.name for file in tmp_path.glob("*.pt")) == ["epoch-0010.pt", "epoch-0011.pt"]


def test_nothing_saved(tmp_path: Path) -> None:
    assert Checkpoints(Storage(str(tmp_path / "none"))).latest(CPU) is None


@pytest.mark.parametrize(
    "damaged, expected",
    [([], 3), (["epoch-0003.pt"], 2), (["epoch-0003.pt", "epoch-0002.pt"], None), (["epoch-0002.pt"], 3)],
)
@pytest.mark.parametrize("content", [b"", b"half", None])
def test_damaged_ones_are_passed_over_and_named(
    kept: Checkpoints,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damaged: list[str],
    expected: int | None,
    content: bytes | None,
) -> None:
    for name in damaged:
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert epoch_of(kept.latest(CPU)) == expected
    warned = [record.getMessage().split(" is damaged")[0] for record in caplog.records]
    assert warned == ([] if damaged == ["epoch-0002.pt"] else [f"file://{tmp_path / name}" for name in damaged])


def test_without_its_marker_a_file_is_not_read(
    kept: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "epoch-0003.json").unlink()
    assert epoch_of(kept.latest(CPU)) == 2
    assert not caplog.records


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    checkpoints = Checkpoints(Storage(str(tmp_path)))
    checkpoints.write(1, pack({"trained": Harmful(ran)}))
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoints.latest(CPU)
    assert not ran.exists()


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


class TestBest:
    WEIGHTS = {"a": torch.tensor([[1.0, -2.0]]), "b": torch.arange(6).view(2, 3).t()}  # noqa: RUF012

    def test_comes_back(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(Storage(str(tmp_path)))
        best = pack_best(7, self.WEIGHTS)
        assert best.entry["file"] == "best-0007.safetensors"
        checkpoints.write_best(best)
        found = checkpoints.load_best(best.entry)
        assert found.keys() == self.WEIGHTS.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in self.WEIGHTS.items())

    def test_damage_is_found(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(Storage(str(tmp_path)))
        best = pack_best(7, self.WEIGHTS)
        checkpoints.write_best(best)
        file = tmp_path / best.entry["file"]
        file.write_bytes(file.read_bytes()[:-1] + b"\x07")
        with pytest.raises(
            InputError, match=f"{file}: its content does not match the checkpoint; remove .*train again"
        ):
            checkpoints.load_best(best.entry)

    def test_dropping_leaves_what_is_kept_and_the_checkpoints(self, kept: Checkpoints, tmp_path: Path) -> None:
        for epoch in (1, 2, 3):
            kept.write_best(pack_best(epoch, self.WEIGHTS))
        kept.drop_best(keep={"best-0001.safetensors", "best-0003.safetensors"})
        assert [file.name for file in sorted(tmp_path.glob("best-*"))] == [
            "best-0001.safetensors",
            "best-0003.safetensors",
        ]
        assert epoch_of(kept.latest(CPU)) == 3

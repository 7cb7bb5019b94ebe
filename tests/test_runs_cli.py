"""``btinet runs ...`` and ``btinet data list``: what a storage holds, as a user asks."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from btinet import cli
from btinet.errors import InputError
from btinet.storage import Storage
from tests.training.micro import KEY, Bench, files, finished_bench, one_thread  # noqa: F401


@pytest.fixture
def finished(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return finished_bench(tmp_path / "micro", tmp_path_factory.getbasetemp())


def said(bench: Bench, *arguments: str, status: int = 0, keys: str = "", columns: int = 80) -> str:
    """What the program prints on both streams, in a terminal this wide."""
    environment = {"COLUMNS": str(columns), "BTINET_STORAGE": bench.root.url}
    result = CliRunner().invoke(cli.app, [*arguments], input=keys, env=environment)
    assert result.exit_code == status, result.output
    return result.output


def test_list(finished: Bench) -> None:
    """At 80 columns nothing is cut: the id goes on in the next line."""
    text = said(finished, "runs", "list")
    assert "…" not in text
    metrics = json.loads(said(finished, "runs", "list", "--json"))[0]["metrics"]
    assert f"{metrics['test_iou']:.4g}" in text and "evaluated" in text
    first = [line.split()[0] for line in text.splitlines() if line.startswith(" ") and line.strip()]
    assert finished.bound.run_id in "".join(first)


def test_list_of_nothing(finished: Bench, tmp_path: Path) -> None:
    assert "no run there; --storage names another place" in said(
        finished, "runs", "list", "--storage", str(tmp_path / "empty"), columns=500
    )


def test_show(finished: Bench) -> None:
    text = said(finished, "runs", "show", KEY, columns=300)
    for part in (finished.bound.run_id, finished.bound.prepared, "stage 1", "stage 2", "evaluation", "image_size"):
        assert part in text
    shown = json.loads(said(finished, "runs", "show", finished.bound.run_id, "--json"))
    assert (shown["key"], shown["status"], shown["settings"]["image_size"]) == (KEY, "evaluated", 32)


def test_compare(finished: Bench) -> None:
    """With itself nothing differs; with a run of another learning rate and a seed, just these do."""
    assert "nothing: they are the same run" in said(finished, "runs", "compare", KEY, finished.bound.run_id)
    folder = Path(finished.root.path) / "runs"
    other = json.loads((folder / finished.bound.run_id / "run.json").read_text())
    other["run"]["seed"] = 8
    other["run"]["settings"]["train"]["stage1"]["learning_rate"] = 0.5
    (folder / "other").mkdir()
    (folder / "other/run.json").write_text(json.dumps(other))
    different = json.loads(said(finished, "runs", "compare", KEY, str(folder / "other"), "--json"))["different"]
    assert different["seed"] == [7, 8]
    assert different["train.stage1.learning_rate"] == [3e-3, 0.5]
    assert different["status"] == ["evaluated", "started"]
    assert {"prepared", "method", "train.stage2.epochs"}.isdisjoint(different)


@pytest.mark.parametrize("keys", ["n\n", "\n", ""])
def test_rm_refused(finished: Bench, keys: str) -> None:
    before = files(Path(finished.root.path))
    assert "Remove these?" in said(finished, "runs", "rm", KEY, keys=keys, status=1)
    assert files(Path(finished.root.path)) == before


@pytest.mark.parametrize(("options", "keys"), [((), "y\n"), (("--yes",), "")])
def test_rm(finished: Bench, options: tuple[str, ...], keys: str) -> None:
    """The run and its result files go; the prepared data and another run's files stay."""
    root = Path(finished.root.path)
    shutil.copytree(root / "runs" / finished.bound.run_id, root / "runs/neighbour")
    said(finished, "runs", "rm", finished.bound.run_id, *options, keys=keys)
    left = files(root)
    assert not [name for name in left if finished.bound.run_id in name]
    assert any(name.startswith("datasets/") for name in left)
    assert (root / "runs/neighbour/run.json").exists()


def test_rm_interrupted(finished: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run can be named again until nothing of it is left."""
    for file in finished.root.find("progress.json"):
        file.write_json(file.read_json() | {"time": time.time() - 1000})
    remove, left = Storage.remove, [3, 2, 100]

    def interrupted(file: Storage) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        remove(file)

    monkeypatch.setattr(Storage, "remove", interrupted)
    for status in (130, 130, 0):
        said(finished, "runs", "rm", KEY, "--yes", status=status)
        left.pop(0)
    assert not [name for name in files(Path(finished.root.path)) if finished.bound.run_id in name]


def test_rm_of_a_run_that_is_running(finished: Bench) -> None:
    (finished.folder(2) / "receipt.json").unlink()
    file = Storage(str(finished.folder(2) / "progress.json"))
    file.write_json(file.read_json() | {"time": time.time()})
    before = files(Path(finished.root.path))
    result = CliRunner().invoke(cli.app, ["runs", "rm", KEY, "--storage", finished.root.url, "--yes"])
    assert isinstance(result.exception, InputError) and "is running: end what trains it" in str(result.exception)
    assert files(Path(finished.root.path)) == before


def test_data_list(finished: Bench) -> None:
    text = " ".join(said(finished, "data", "list").split())
    for part in ("readers: busi", "phantom", finished.bound.prepared, "40", "benign 20,", "paper"):
        assert part in text

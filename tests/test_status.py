"""plan and status: an experiment's runs, from what lies in storage."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from btinet import cli
from btinet.config import NUMERICS, load_experiment
from btinet.partitions import read_partition
from btinet.progress import write_failure
from btinet.status import failure_file, latest_message, run_states, seconds_left
from btinet.training.outputs import epochs_file, finished_stage
from tests.training.micro import Bench, finished_bench, settings


@pytest.fixture
def finished(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Seed 7 is done; the experiment's second seed was never started."""
    finished = finished_bench(tmp_path / "micro", tmp_path_factory.getbasetemp())
    content = yaml.safe_load(finished.file.read_text()) | {"seeds": [7, 8]}
    finished.file.write_text(yaml.safe_dump(content))
    return finished


def show(command: str, file: Path) -> str:
    done = CliRunner().invoke(cli.app, [command, str(file)])
    assert done.exit_code == 0, done.output
    return done.stdout


def row(printed: str, key: str) -> list[str]:
    (line,) = (line for line in printed.splitlines() if key in line and "error" not in line)
    return line.split()


def test_plan_before_anything(tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path / "storage", {"seeds": [1], "variants": ["full", "plain"]})))
    printed = show("plan", file)
    assert row(printed, "phantom/btinet/full/1")[1:] == ["-", "stage1", "stage2", "evaluation", "unknown"]
    assert row(printed, "phantom/btinet/plain/1")[1:] == ["-", "stage1", "evaluation", "unknown"], "it has no gates"
    assert "2 run(s): 0 done, 2 to do" in printed and "2 of unknown duration" in printed
    assert not (tmp_path / "storage").exists(), "it starts nothing and writes nothing"


def test_plan_of_half_an_experiment(finished: Bench) -> None:
    printed = show("plan", finished.file)
    assert row(printed, "full/7")[1:] == ["stage1", "stage2", "evaluation", "-", "-"]
    assert row(printed, "full/8")[1:5] == ["-", "stage1", "stage2", "evaluation"]
    states = run_states(load_experiment(finished.file), finished.root)
    done = states[0].receipts
    # the time of the run that is done; it stopped after as many epochs as the budget has
    expected = sum(receipt.wall_seconds for receipt in done.values())
    budget = finished.bound.run.settings.train.stage1.epochs
    assert done["stage1"].metrics["epochs"] == budget
    assert seconds_left(states, finished.root) == [0.0, pytest.approx(expected)]


def test_pace_of_another_experiment(finished: Bench, tmp_path: Path) -> None:
    content = yaml.safe_load(finished.file.read_text())
    assert _left(finished, content | {"seeds": [99], "name": "other"}) is not None
    content["image_size"] = 64
    assert _left(finished, content) is None, "images of another size take another time"


def test_time_of_a_stage_is_that_of_its_epochs(finished: Bench) -> None:
    """Those before an interruption included: the history goes on, the process does not."""
    for stage in (1, 2):
        seconds = read_partition(epochs_file(finished.root, finished.bound, stage))["seconds"].to_pylist()
        receipt = finished_stage(finished.bound, stage, finished.root)
        assert receipt is not None and receipt.wall_seconds == pytest.approx(sum(seconds), abs=1e-3)


def _left(finished: Bench, content: dict[str, object]) -> float | None:
    file = finished.file.with_name("other.yaml")
    file.write_text(yaml.safe_dump(content))
    return seconds_left(run_states(load_experiment(file), finished.root), finished.root)[0]


def test_changed_settings_are_another_run(finished: Bench) -> None:
    content = yaml.safe_load(finished.file.read_text())
    content["train"]["stage1"]["learning_rate"] = 1e-5
    finished.file.write_text(yaml.safe_dump(content))
    assert [state.word for state in run_states(load_experiment(finished.file), finished.root)] == ["to do", "to do"]


def test_a_run_of_other_numerics_is_another(finished: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow would train it anew; how long it took still tells something."""
    monkeypatch.setattr("btinet.status.NUMERICS", NUMERICS + 1)
    printed = show("plan", finished.file)
    assert row(printed, "full/7")[1:5] == ["-", "stage1", "stage2", "evaluation"]
    assert "of unknown duration" not in printed


def test_evaluation_settings_repeat_the_evaluation_only(finished: Bench) -> None:
    content = yaml.safe_load(finished.file.read_text())
    content["evaluation"]["mc_passes"] = 4
    finished.file.write_text(yaml.safe_dump(content))
    state = run_states(load_experiment(finished.file), finished.root)[0]
    assert (state.step, list(state.receipts)) == ("evaluation", ["stage1", "stage2"])


def test_status(finished: Bench) -> None:
    """A run is made to look as it does in stage 2, then interrupted, then failed."""
    (finished.folder(2) / "receipt.json").unlink()
    file = finished.root / "runs" / finished.bound.run_id / "stage2/progress.json"
    content = file.read_json()
    content["progress"] |= {"epoch": 2, "last": content["progress"]["last"] | {"seconds": 12.0}}
    file.write_json(content | {"time": time.time()})
    found = row(show("status", finished.file), "full/7")
    assert found[1:6] == ["running", "stage2", "2/2", "12.0", "s/epoch"]
    assert latest_message(finished.bound, finished.root, since=0.0) is not None
    assert latest_message(finished.bound, finished.root, since=time.time()) is None

    def age(seconds: float) -> None:
        for other in (finished.root / "runs" / finished.bound.run_id).find("progress.json"):
            other.write_json(other.read_json() | {"time": time.time() - seconds})

    age(1000)
    assert row(show("status", finished.file), "full/7")[1] == "interrupted"
    write_failure(failure_file(finished.root, finished.bound.run_id), "stage2", "the loss is [nan]", is_final=True)
    printed = show("status", finished.file)
    assert row(printed, "full/7")[1] == "failed"
    assert "last error of phantom/btinet/full/7" in printed and "the loss is [nan]" in printed
    assert "2 run(s): 1 failed, 1 to do" in printed

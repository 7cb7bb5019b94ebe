"""The command line, from data to tables, and what it says when something is wrong."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from btinet import cli
from btinet.datasets.prepared import read_manifest
from btinet.receipts import Receipt
from btinet.storage import Storage
from tests.training.micro import KEY, Bench, bench, finished_bench, one_thread, settings  # noqa: F401

COMMANDS = ["prepare", "train", "evaluate", "analyse", "report"]
ROW = re.compile(r"phantom-btinet-full-7-tiny-[0-9a-f]{10}: ")


@pytest.fixture
def micro(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Data prepared, nothing trained."""
    return bench(tmp_path / "micro", tmp_path_factory.getbasetemp())


@pytest.fixture
def finished(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return finished_bench(tmp_path / "micro", tmp_path_factory.getbasetemp())


@pytest.fixture
def btinet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the program in this process; gives exit status, standard output and standard error on one line."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["btinet", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, " ".join(err.split())

    return run


def test_help() -> None:
    text = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200"})
    assert text.exit_code == 0
    assert "prepare -> train (stage 1, stage 2) -> evaluate -> analyse" in text.stdout
    for command in COMMANDS:
        own = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"})
        assert own.exit_code == 0
        first_line = getattr(cli, command).__doc__.splitlines()[0]
        assert first_line.split(";")[0] in " ".join(own.stdout.split())
        assert ("--results" if command == "report" else "--experiment") in own.stdout
        assert command in text.stdout
    registered = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert registered == {*COMMANDS, "export", "plan", "predict", "serve", "status", "tune"}


def test_fault_of_the_installed_program(tmp_path: Path) -> None:
    """One message, whole on its line, and no traceback."""
    program = str(Path(sys.executable).with_name("btinet"))
    missing = tmp_path / "a" / "name-that-is-longer-than-a-terminal-is-wide" / "so-that-it-would-be-wrapped" / "e.yaml"
    bad = subprocess.run([program, "plan", str(missing)], capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == f"btinet: {missing}: no such experiment file; examples are in experiments/\n"


def test_whole_chain(tmp_path: Path, btinet: Callable[..., tuple[int, str, str]]) -> None:
    """prepare -> train 1 -> train 2 -> evaluate -> analyse, then the same again."""
    file, out = tmp_path / "experiment.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(settings(tmp_path / "not-this-one", {"train": {"stage1": {"epochs": 2}}})))
    store = ["--store", str(out / "stores/phantom")]
    common = ["--experiment", str(file), "--storage", str(tmp_path / "storage")]

    def do(*arguments: str) -> tuple[str, str]:
        status, stdout, stderr = btinet(*arguments, *common)
        assert status == 0, stderr
        return stdout, stderr

    said = do("prepare", "--export", str(out / "stores/phantom"))[1]
    assert re.fullmatch(
        r"phantom: prepared: 40 samples \(benign 20, malignant 12, normal 8\) at 32 px, hash [0-9a-f]{16}", said
    )
    manifest = read_manifest(Storage(str(out / "stores/phantom")))
    assert manifest is not None and manifest.count == 40

    for stage, epochs in (("1", 2), ("2", 2)):
        arguments = ["train", KEY, "--stage", stage, "--in-process", *store]
        files = ["--receipt", str(out / f"{stage}.json"), "--history", str(out / f"{stage}.csv")]
        said = do(*arguments, *files)[1]
        assert f"{KEY} stage {stage} epoch {epochs}/{epochs} step 4/4 loss" in said
        assert ROW.search(said)
        receipt = Receipt.model_validate_json((out / f"{stage}.json").read_text())
        assert receipt.step == f"stage{stage}"
        assert receipt.metrics["epochs"] == epochs
        history = list(csv.DictReader((out / f"{stage}.csv").open()))
        assert [(row["stage"], row["epoch"]) for row in history] == [(stage, str(n + 1)) for n in range(epochs)]
        assert do(*arguments)[1].startswith(f"{KEY} stage {stage}: done already ({receipt.finished})")

    arguments = ["evaluate", KEY, "--in-process", *store]
    do(*arguments, "--receipt", str(out / "e.json"), "--metrics", str(out / "metrics/m.json"))
    receipt = Receipt.model_validate_json((out / "e.json").read_text())
    assert json.loads((out / "metrics/m.json").read_text()) == receipt.metrics
    assert receipt.metrics["test_samples"] == 6
    assert do(*arguments)[1].startswith(f"{KEY} evaluation: done already ({receipt.finished})")

    stdout, said = do("analyse", "--stores", str(out / "stores"), "--export", str(out / "analysis"))
    assert "test split" in stdout
    assert f"report file://{tmp_path}/storage/report/micro/" in said
    table = list(csv.DictReader((out / "analysis/segmentation.csv").open()))
    assert [row["dataset"] for row in table] == ["phantom"]
    lesions = receipt.metrics["test_iou"]
    assert isinstance(lesions, float)
    assert float(table[0]["iou"]) == pytest.approx(100 * lesions, rel=1e-6)
    assert "<html" in (out / "analysis/report.html").read_text()

    alone = ["--results", str(tmp_path / "storage"), "--output", str(out / "report"), "--name", "elsewhere"]
    status, stdout, said = btinet("report", *alone, "--tensorboard", str(out / "tensorboard"))
    assert (status, "test split" in stdout) == (0, True)
    assert f"report file://{out}/report/index.html" in said
    assert "<h1>elsewhere</h1>" in (out / "report/index.html").read_text()
    names = {file.stem for file in (tmp_path / "storage/analysis/micro").iterdir()}
    assert {file.stem for file in (out / "report/tables").iterdir()} == names
    assert len(list((out / "tensorboard").iterdir())) == 2  # the run's curves, and the figures

    assert "phantom: prepared before: 40 samples" in do("prepare")[1]
    assert not (tmp_path / "not-this-one").exists()


def test_no_stage_2_without_gates(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, btinet: Callable[..., tuple[int, str, str]]
) -> None:
    made = bench(
        tmp_path / "micro", tmp_path_factory.getbasetemp(), variants=["no-upa"], train={"stage1": {"epochs": 1}}
    )
    key = "phantom/btinet/no-upa/7"
    assert btinet("train", key, "--stage", "1", "-e", str(made.file), "--in-process")[0] == 0
    receipt, history = tmp_path / "2.json", tmp_path / "2.csv"
    status, _, said = btinet(
        "train", key, "--stage", "2", "-e", str(made.file), "--receipt", str(receipt), "--history", str(history)
    )
    assert (status, said) == (0, f"{key} trains no gates on L_gate, hence has no stage 2: nothing to do")
    assert json.loads(receipt.read_text())["skipped"] == "no gates"
    assert len(history.read_text().splitlines()) == 1
    assert not made.folder(2).exists()


class TestFaults:
    """Exit status 2 and one message that says what to do."""

    @pytest.fixture
    def fault(self, btinet: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
        def run(*arguments: str) -> str:
            status, out, err = btinet(*arguments)
            assert (status, out) == (2, "")
            assert "Traceback" not in err
            assert err.startswith("btinet: ")
            return err.removeprefix("btinet: ")

        return run

    @pytest.fixture
    def file(self, tmp_path: Path) -> Callable[..., str]:
        def write(**changes: Any) -> str:
            file = tmp_path / "e.yaml"
            file.write_text(yaml.safe_dump(settings(tmp_path / "storage", changes)))
            return str(file)

        return write

    def test_unknown_key(self, fault: Callable[..., str], file: Callable[..., str]) -> None:
        path = file(train={"batchsize": 8}, colour="red")
        message = fault("plan", path)
        assert message.startswith(f"{path}: ")
        assert "colour: unknown key: check its spelling against docs/configuration.md, or remove it" in message

    def test_unknown_key_within(self, fault: Callable[..., str], file: Callable[..., str]) -> None:
        assert "batchsize" in fault("plan", file(train={"batchsize": 8}))

    def test_missing_dataset_root(self, fault: Callable[..., str], file: Callable[..., str]) -> None:
        path = file(datasets=[{"name": "busi", "root": "/no/such/folder"}])
        message = "dataset 'busi': datasets.root: no such folder: /no/such/folder; "
        assert fault("prepare", "-e", path).startswith(message)
        assert fault("train", "busi/btinet/full/7", "--stage", "1", "-e", path, "--in-process").startswith(message)

    def test_dataset_root_nowhere(self, fault: Callable[..., str], file: Callable[..., str]) -> None:
        message = fault("prepare", "-e", file(datasets=[{"name": "busi"}]))
        assert "none of datasets.root, data_root, BTINET_DATA_ROOT says where it is" in message

    def test_unknown_run(self, fault: Callable[..., str], micro: Bench) -> None:
        for command in (["train", "--stage", "1"], ["evaluate"]):
            message = fault(command[0], "phantom/btinet/full/8", *command[1:], "-e", str(micro.file), "--in-process")
            assert message == f"experiment 'micro' has no run 'phantom/btinet/full/8'; it has: {KEY}"

    def test_unknown_dataset(self, fault: Callable[..., str], micro: Bench) -> None:
        assert fault("prepare", "busi", "-e", str(micro.file)) == "experiment 'micro' has no dataset 'busi'"

    def test_export_of_several_datasets(self, fault: Callable[..., str], file: Callable[..., str]) -> None:
        path = file(datasets=[{"name": "phantom", "max_samples": 40}, {"name": "busi", "root": "/nowhere"}])
        message = fault("prepare", "-e", path, "--export", "anywhere")
        assert message == "--export takes one dataset: name one of phantom, busi"

    def test_stages_in_order(self, fault: Callable[..., str], micro: Bench) -> None:
        run_id = micro.bound.run_id
        message = fault("train", KEY, "--stage", "2", "-e", str(micro.file), "--in-process")
        assert message == f"stage 1 of {run_id} is not finished: run `btinet train {KEY} --stage 1` first"
        message = fault("evaluate", KEY, "-e", str(micro.file), "--in-process")
        assert message == f"stage 1 of {run_id} is not finished: run `btinet train {KEY} --stage 1` first"
        message = fault("analyse", "-e", str(micro.file))
        assert message == f"not evaluated yet: {KEY}; run `btinet evaluate RUN` for each"

    def test_evaluation_needs_every_stage(self, fault: Callable[..., str], finished: Bench) -> None:
        """It says so before it evaluates any."""
        (finished.folder(2) / "receipt.json").unlink()
        folder = finished.folder(2).parent
        for name in ("evaluation.json", "evaluation-progress.json"):
            (folder / name).unlink()
        message = fault("evaluate", KEY, "-e", str(finished.file), "--in-process")
        assert message.endswith(f"is not finished: run `btinet train {KEY} --stage 2` first")
        assert not (folder / "evaluation-progress.json").exists()

    @pytest.mark.parametrize("command", ["plan", "status", "runs list", "report"])
    def test_storage_without_credentials(
        self, fault: Callable[..., str], file: Callable[..., str], tmp_path: Path, command: str
    ) -> None:
        arguments = [file()] if command in ("plan", "status") else []
        arguments += ["--output", str(tmp_path / "report"), "--results"] if command == "report" else ["--storage"]
        message = fault(*command.split(), *arguments, "s3://bucket/prefix")
        assert message.startswith("the storage is not reached: Unable to locate credentials; check the bucket's name")

    def test_experiment_that_cannot_be_read(self, fault: Callable[..., str], tmp_path: Path) -> None:
        message = fault("plan", str(tmp_path))
        assert message.startswith(f"{tmp_path}: cannot be read as YAML in UTF-8: ")
        latin = tmp_path / "latin.yaml"
        latin.write_bytes("name: é".encode("latin-1"))
        assert fault("plan", str(latin)).startswith(f"{latin}: cannot be read as YAML in UTF-8: ")

    def test_storage_that_cannot_be_written(self, fault: Callable[..., str], micro: Bench, tmp_path: Path) -> None:
        blocked = tmp_path / "blocked"
        blocked.write_text("a file")
        message = fault("prepare", "-e", str(micro.file), "--storage", str(blocked))
        assert message.startswith(f"storage file://{blocked} cannot be written: ")
        assert message.endswith("check that the folder can be created and written")

    def test_damaged_weights(self, fault: Callable[..., str], finished: Bench) -> None:
        model = finished.folder(1) / "model.safetensors"
        model.write_bytes(model.read_bytes()[:-1] + b"\x55")
        (finished.folder(2) / "receipt.json").unlink()
        message = fault("train", KEY, "--stage", "2", "-e", str(finished.file), "--in-process")
        assert message == f"file://{model}: its content does not match its receipt; remove it and run again"

    def test_damaged_receipt(self, fault: Callable[..., str], finished: Bench) -> None:
        (finished.folder(1) / "receipt.json").write_text("{")
        message = fault("train", KEY, "--stage", "1", "-e", str(finished.file), "--in-process")
        assert message.startswith(f"file://{finished.folder(1)}/receipt.json: not a receipt; remove it and run again")

    def test_batch_that_cannot_be_filled(self, fault: Callable[..., str], file: Callable[..., str]) -> None:
        path = file(train={"batch_size": 32})
        message = fault("train", KEY, "--stage", "1", "-e", path, "--in-process")
        assert message.startswith("dataset 'phantom': 28 training samples do not fill one batch of 32; ")

    @pytest.mark.parametrize(
        "arguments", [["train", KEY], ["train", KEY, "--stage", "3"], ["train"], ["nonsense"], ["plan", "--colour"]]
    )
    def test_wrong_use(self, btinet: Callable[..., tuple[int, str, str]], arguments: list[str]) -> None:
        status, out, err = btinet(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith("Usage: ")
        assert "Traceback" not in err


def test_interrupted(micro: Bench) -> None:
    """Ctrl-C ends a training with 130 and no traceback; its checkpoints stay."""
    content = yaml.safe_load(micro.file.read_text())
    content["train"]["stage1"] |= {"epochs": 500, "patience": 500}
    micro.file.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-c", "from btinet.cli import main; main()", "train", KEY, "--stage", "1"]
    process = subprocess.Popen(
        [*command, "--in-process", "-e", str(micro.file)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 2/500" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait() == 130
    assert "Traceback" not in rest
    assert micro.root.find("epoch-0001.json") or micro.root.find("epoch-0002.json")

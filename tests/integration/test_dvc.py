"""dvc.yaml and params.yaml, with a small experiment in a repository of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from btinet.config import load_experiment
from btinet.datasets.prepared import read_manifest
from btinet.storage import Storage, file_sha256

REPOSITORY = Path(__file__).parents[2]
FILES = (
    *("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"),
    *(".dvc/plots", "data/.gitignore", "data/raw/README.md", "btinet"),
)
RUN = "dataset0-btinet-full-42"
STAGES = ["prepare@dataset0", f"train-stage1@{RUN}", f"train-stage2@{RUN}", f"evaluate@{RUN}", "analyse"]
OUTPUTS = ("prepared", "runs", "history", "analysis")
"""Folders of data/ that DVC keeps."""


class Project:
    """A Git and DVC repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *command: str) -> str:
        """Standard output and error of a command that succeeds."""
        identity = {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        own = {f"DVC_{name}": str(self.folder.parent / "dvc" / name.lower()) for name in DVC_FOLDERS}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | identity | own | {"PATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def repro(self) -> list[str]:
        """The stages that a `dvc repro` runs."""
        return re.findall(r"^Running stage '(.+)':", self("dvc", "repro"), re.MULTILINE)

    def json(self, *command: str) -> Any:
        return json.JSONDecoder().raw_decode(self("dvc", *command, "--json"))[0]

    def change(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Edit params.yaml."""
        file = self.folder / "params.yaml"
        params = yaml.safe_load(file.read_text())
        change(params)
        file.write_text(yaml.safe_dump(params, sort_keys=False))

    def commit(self) -> None:
        self("git", "add", "--all")
        self("git", "commit", "--quiet", "--message", "test")

    def contents(self) -> dict[str, str]:
        """Hash of every file that DVC keeps."""
        files = [file for name in OUTPUTS for file in (self.folder / "data" / name).rglob("*") if file.is_file()]
        return {str(file.relative_to(self.folder)): file_sha256(file) for file in files}


DVC_FOLDERS = ("SITE_CACHE_DIR", "GLOBAL_CONFIG_DIR", "SYSTEM_CONFIG_DIR")


def shrink(params: dict[str, Any]) -> None:
    params["datasets"] = [{"name": "phantom", "max_samples": 40}]
    params["seeds"] = [42]
    params["train"]["stage1"]["epochs"] = params["train"]["stage2"]["epochs"] = 1
    params["evaluation"]["mc_passes"] = 2


def set_tau(params: dict[str, Any]) -> None:
    params["model"]["tau"] = 0.9


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """What a clone of this repository holds, as far as DVC is concerned."""
    folder = tmp_path_factory.mktemp("dvc") / "project"
    for name in FILES:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(REPOSITORY / name, target)
    project = Project(folder)
    project("git", "init", "--quiet")
    return project


@pytest.fixture(scope="module")
def reproduced(checkout: Project) -> Project:
    """After the first `dvc repro`, committed. Not to be changed."""
    folder = checkout.folder.with_name("reproduced")
    shutil.copytree(checkout.folder, folder)
    project = Project(folder)
    project.change(shrink)
    assert project.repro() == STAGES
    project.commit()
    return project


@pytest.fixture
def project(reproduced: Project, tmp_path: Path) -> Project:
    """A copy of it to change."""
    shutil.copytree(reproduced.folder, tmp_path / "project")
    return Project(tmp_path / "project")


def test_the_matrix_is_that_of_the_experiment(checkout: Project) -> None:
    stages = checkout("dvc", "stage", "list", "--name-only").split()
    experiment = load_experiment(checkout.folder / "params.yaml")
    assert len(stages) == len(experiment.datasets) + 3 * len(experiment.runs()) + 1
    assert {f"evaluate@dataset0-btinet-full-{seed}" for seed in experiment.seeds} <= set(stages)


def test_repro_leaves_data_receipts_histories_and_tables(reproduced: Project) -> None:
    data = reproduced.folder / "data"
    manifest = read_manifest(Storage(str(data / "prepared" / "phantom")))
    assert manifest is not None and manifest.count == 40
    run = data / "runs/phantom/btinet/full/42"
    assert [json.loads((run / f"{step}.json").read_text())["step"] for step in ("stage1", "stage2", "evaluation")] == [
        "stage1",
        "stage2",
        "evaluation",
    ]
    for stage in (1, 2):
        header, *rows = (data / f"history/stage{stage}/phantom-btinet-full-42.csv").read_text().splitlines()
        assert "val_iou" in header and len(rows) == 1
    assert "phantom" in (data / "analysis/segmentation.csv").read_text()
    assert "<html" in (data / "analysis/report.html").read_text()


def test_git_keeps_the_lock_and_the_metrics_and_no_more(reproduced: Project) -> None:
    tracked = reproduced("git", "ls-files", "data", "results", "dvc.lock").split()
    assert sorted(tracked) == [
        "data/.gitignore",
        "data/metrics/phantom/btinet/full/42.json",
        "data/raw/README.md",
        "dvc.lock",
    ]


def test_second_repro_does_nothing(project: Project) -> None:
    before = project.contents()
    output = project("dvc", "repro")
    assert re.findall(r"Stage '(.+)' didn't change, skipping", output) == STAGES
    assert "Running" not in output
    assert project.contents() == before
    assert project.json("status") == {}


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        (set_tau, [f"train-stage1@{RUN}", f"train-stage2@{RUN}"]),
        (lambda params: params["evaluation"].update(mc_passes=3), [f"evaluate@{RUN}"]),
        (
            lambda params: params["datasets"][0].update(max_samples=41),
            ["prepare@dataset0", f"train-stage1@{RUN}", "analyse"],
        ),
        (
            lambda params: params["datasets"][0].update(split="clean"),
            ["prepare@dataset0", f"train-stage1@{RUN}", "analyse"],
        ),
        (
            lambda params: params["datasets"].append({"name": "other"}),
            [
                *("prepare@dataset0", "prepare@dataset1", "analyse"),
                *(f"{stage}@{RUN.replace('0', '1')}" for stage in ("train-stage1", "train-stage2", "evaluate")),
            ],
        ),
        (lambda params: params.update(weights="b4.safetensors"), [f"train-stage1@{RUN}", f"train-stage2@{RUN}"]),
        (
            lambda params: params["seeds"].append(7),
            [
                *(f"{stage}@{RUN.replace('42', '7')}" for stage in ("train-stage1", "train-stage2", "evaluate")),
                "analyse",
            ],
        ),
        (lambda params: params["storage"].update(url="file:///elsewhere"), []),
    ],
    ids=["tau", "mc_passes", "max_samples", "split", "datasets", "weights", "seeds", "storage"],
)
def test_what_a_change_touches_first(
    project: Project, change: Callable[[dict[str, Any]], None], stages: list[str]
) -> None:
    """The stages that read the setting themselves; those after them follow when these have run."""
    project.change(change)
    assert sorted(project.json("status")) == sorted(stages)


def test_metrics_show(reproduced: Project) -> None:
    shown = reproduced.json("metrics", "show")[""]["data"]
    metrics = shown["data/metrics/phantom/btinet/full/42.json"]["data"]
    assert metrics["test_samples"] == 6
    for name in ("test_iou", "test_dice", "test_accuracy"):
        assert 0 <= metrics[name] <= 1


def test_params_diff(project: Project) -> None:
    project.change(set_tau)
    (differing,) = project.json("params", "diff")["params.yaml"].items()
    assert differing[0] == "model.tau"
    assert (differing[1]["old"], differing[1]["new"]) == (0.7, 0.9)


def test_plots_show(project: Project) -> None:
    plots = {name: shown[0]["content"] for name, shown in project.json("plots", "show")["data"].items() if shown}
    assert set(plots) == {
        "data/history/stage1/phantom-btinet-full-42.csv",
        "data/history/stage2/phantom-btinet-full-42.csv",
        *(f"data/analysis/{table}.csv" for table in ("table2", "table_a3", "table_a4")),
    }
    history = plots["data/history/stage1/phantom-btinet-full-42.csv"]
    assert history["encoding"]["x"]["field"] == "epoch"
    assert {point["field"] for point in history["data"]["values"]} == {"train_loss", "val_iou", "val_accuracy"}
    detection = plots["data/analysis/table2.csv"]
    assert [point["signal"] for point in detection["data"]["values"]] == ["mc"] + 4 * ["w_seg"]
    assert detection["title"]["text"] == "Segmentation failures found on test (AUROC)"

    assert "dvc_plots/index.html" in project("dvc", "plots", "show")
    page = (project.folder / "dvc_plots/index.html").read_text()
    assert all(name.replace("/", "_").replace(".", "_") in page for name in plots)


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_another_clone_pulls_what_was_pushed(
    project: Project, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    if kind == "local":
        project("dvc", "remote", "add", "store", str(tmp_path / "remote"))
    else:
        server = request.getfixturevalue("s3_env")
        project("dvc", "remote", "add", "store", f"s3://{server.bucket}/dvc-{tmp_path.name}")
        project("dvc", "remote", "modify", "store", "endpointurl", server.endpoint)
    project.commit()
    project("dvc", "push", "--remote", "store")

    project("git", "clone", "--quiet", str(project.folder), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    assert clone.contents() == {}
    clone("dvc", "pull", "--remote", "store")
    assert clone.contents() == project.contents() != {}
    assert clone.repro() == []
    assert not (clone.folder / "results").exists()


@pytest.mark.slow
def test_tau_runs_again_what_depends_on_it_and_nothing_else(project: Project) -> None:
    before = project.contents()
    project.change(set_tau)
    assert project.repro() == STAGES[1:]
    after = project.contents()
    assert {name for name in before if before[name] == after[name]} >= {
        name for name in before if name.startswith("data/prepared/")
    }
    for step in ("stage1", "stage2", "evaluation"):
        receipt = f"data/runs/phantom/btinet/full/42/{step}.json"
        assert before[receipt] != after[receipt]

    project("git", "checkout", "--quiet", "params.yaml")
    assert project.repro() == []  # DVC remembers the outputs
    assert project.contents() == before


@pytest.mark.slow
def test_a_variant_without_gates_has_an_empty_stage_2(project: Project) -> None:
    before = project.contents()
    project.change(lambda params: params["variants"].append("no-upa"))
    run = RUN.replace("full", "no-upa")
    new = [f"train-stage1@{run}", f"train-stage2@{run}", f"evaluate@{run}", "analyse"]
    assert sorted(project.repro()) == sorted(new)
    after = project.contents()
    assert all(after[name] == before[name] for name in before if not name.startswith("data/analysis/"))
    receipt = json.loads((project.folder / "data/runs/phantom/btinet/no-upa/42/stage2.json").read_text())
    assert receipt["skipped"] == "no gates"
    assert "no-upa" in (project.folder / "data/analysis/segmentation.csv").read_text()
    assert "DVC failed" not in project("dvc", "plots", "show")

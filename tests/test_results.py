"""The tables people read, and the row about each run."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import yaml
from rich.console import Console

from btinet.config import Settings
from btinet.errors import InputError
from btinet.evaluation.outputs import predictions_file
from btinet.evaluation.run_table import run_file
from btinet.partitions import read_partition
from btinet.results import Results, find_runs, headline_rows, headline_table, publish, publish_results
from btinet.storage import Storage
from btinet.training.outputs import finished_stage
from tests.report.folder import write_results
from tests.training.micro import KEY, Bench, bench, finished_bench, one_thread  # noqa: F401

SETTING = {"dataset": "busi", "method": "btinet", "variant": "full", "preset": "paper", "stage": 2, "seeds": 3}
OTHER = SETTING | {"variant": "no-upa", "stage": 1, "seeds": 1}


class Published(NamedTuple):
    bench: Bench
    results: Results


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    bench = finished_bench(tmp_path_factory.mktemp("results"), tmp_path_factory.getbasetemp())
    return Published(bench, publish_results(bench.experiment, [bench.bound], bench.root))


def tables() -> dict[str, pa.Table]:
    def table(*rows: dict[str, Any]) -> pa.Table:
        return pa.Table.from_pylist(list(rows))

    def auroc(setting: dict[str, Any], level: str | None, mean: float | None, std: float | None) -> dict[str, Any]:
        return setting | {"signal": "w_seg" if level else "mc", "level": level, "auroc": mean, "auroc_std": std}

    return {
        "segmentation": table(SETTING | {"iou": 74.456, "iou_std": 0.349}, OTHER | {"iou": 70.04, "iou_std": None}),
        "classification": table(
            SETTING | {"accuracy": 91.24, "accuracy_std": 1.0}, OTHER | {"accuracy": 88.0, "accuracy_std": None}
        ),
        "table2": table(
            auroc(SETTING, None, 0.7514, 0.0125),
            auroc(SETTING, "D1", 0.8, 0.05),
            auroc(SETTING, "D2", 0.8246, 0.0),
            auroc(SETTING, "D3", None, None),
            auroc(SETTING, "D4", 0.4995, 0.1),
            auroc(OTHER, None, 0.7, None),
        ),
    }


def test_headline_rows() -> None:
    assert headline_rows(tables()) == [
        {
            "setting": "busi/btinet/full (3 seeds)",
            "IoU %": "74.5±0.3",
            "acc %": "91.2±1.0",
            "MC": "0.75±0.01",
            "w_seg D1": "0.80±0.05",
            "w_seg D2": "0.82±0.00",
            "w_seg D3": "–",
            "w_seg D4": "0.50±0.10",
        },
        {
            "setting": "busi/btinet/no-upa (1 seed)",
            "IoU %": "70.0",
            "acc %": "88.0",
            "MC": "0.70",
            **{f"w_seg D{level}": "–" for level in (1, 2, 3, 4)},
        },
    ]


def test_headline_table_shows_them() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(headline_table("an experiment", headline_rows(tables())))
    shown = console.export_text()
    for text in ("an experiment", "busi/btinet/no-upa", "74.5±0.3", "0.82±0.00", "w_seg D4", "test split"):
        assert text in shown


class TestPublished:
    def test_headline_is_that_of_the_predictions(self, published: Published) -> None:
        bench = published.bench
        test = [
            row
            for row in read_partition(predictions_file(bench.root, bench.bound)).to_pylist()
            if (row["stage"], row["split"]) == (2, "test")
        ]
        iou = 100 * np.mean([row["iou"] for row in test if row["has_mask"]])
        accuracy = 100 * np.mean([row["correct"] for row in test])
        (row,) = headline_rows(published.results.tables)
        assert row["setting"].startswith("phantom/btinet/full (1 seed")
        assert (row["IoU %"], row["acc %"]) == (f"{iou:.1f}", f"{accuracy:.1f}")

    def test_files(self, published: Published) -> None:
        folder = Path(published.bench.root.path)
        results = published.results
        assert Path(results.analysis.path) == folder / "analysis/micro"
        stored = {file.stem for file in (folder / "analysis/micro").iterdir()}
        assert stored == results.tables.keys()
        for name, table in results.tables.items():
            assert (results.analysis / f"{name}.parquet").read_table().equals(table), name
        assert results.report.path.startswith(f"{folder}/report/micro/")
        page = results.report.read_bytes().decode()
        for text in (published.bench.bound.run_id, published.bench.bound.prepared, "paper-s7", "<html"):
            assert text in page
        assert (folder / "results/predictions").is_dir()

    def test_row_of_a_run(self, published: Published) -> None:
        bench = published.bench
        file = run_file(bench.root, bench.bound)
        assert file.path.endswith(f"results/runs/dataset=phantom/method=btinet/{bench.bound.run_id}.parquet")
        (row,) = read_partition(file).to_pylist()
        expected = {
            "run_id": bench.bound.run_id,
            "dataset": "phantom",
            "method": "btinet",
            "variant": "full",
            "preset": "tiny",
            "seed": 7,
            "prepared": bench.bound.prepared,
            "split_id": "paper-s7",
            "weights_sha256": None,
            "test_samples": 6,
            "stage1_epochs": 3,
            "stage1_stopped": "budget",
            "stage2_epochs": 2,
            "stage2_device": "cpu",
        }
        assert {name: row[name] for name in expected} == expected
        assert Settings.model_validate(yaml.safe_load(row["config"])) == bench.bound.run.settings
        assert json.loads(row["environment"])["device"] == "cpu"
        model = sum(parameter.numel() for parameter in bench.task(1).model.parameters())
        gates = sum(parameter.numel() for parameter in bench.task(2).trained.parameters())
        assert (row["parameters"], row["stage1_trained_parameters"]) == (model, model)
        assert row["stage2_trained_parameters"] == gates < model
        for stage in (1, 2):
            receipt = finished_stage(bench.bound, stage, bench.root)
            assert receipt is not None
            assert row[f"stage{stage}_val_iou"] == receipt.metrics["val_iou"]
            assert row[f"stage{stage}_wall_seconds"] == receipt.wall_seconds
        assert row["classes"] == ["benign", "malignant", "normal"]


class TestResultsAlone:
    """What `btinet report` does on a machine that has nothing but a copy of results/."""

    def test_same_tables_and_samples(self, published: Published, tmp_path: Path) -> None:
        source = Path(published.bench.root.path)
        shutil.copytree(source / "results", tmp_path / "copy/results")
        root = Storage(str(tmp_path / "copy"))
        run_ids = find_runs(root, [])
        assert run_ids == [published.bench.bound.run_id]
        target = Storage(str(tmp_path / "out"))
        made = publish(root, run_ids, "elsewhere", target / "tables", target)
        assert made.tables.keys() == published.results.tables.keys()
        assert all(table.equals(published.results.tables[name]) for name, table in made.tables.items())
        assert set(made.files) == {"index.html"}  # no page about a prepared dataset that is not there
        assert set(published.results.files) == {"index.html", f"dataset-phantom-{published.bench.bound.prepared}.html"}
        assert explorer_of(made.report) == explorer_of(published.results.report)
        assert {path.name for path in (tmp_path / "copy").iterdir()} == {"results"}

    def test_runs_are_chosen_by_pattern_and_in_order(self, tmp_path: Path) -> None:
        root = Storage(str(tmp_path))
        write_results(root, ("phantom", "busi"), ("unet", "btinet"), (123, 42), samples=3)
        names = [run_id.removesuffix("-tiny-0123456789") for run_id in find_runs(root, [])]
        order = [("btinet", 42), ("btinet", 123), ("unet", 42), ("unet", 123)]
        assert names == [f"{dataset}-{m}-full-{seed}" for dataset in ("busi", "phantom") for m, seed in order]
        assert len(find_runs(root, ["busi-*", "*-unet-full-42-*"])) == 5

    def test_nothing_to_report(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no evaluated runs; give the folder that holds results/"):
            find_runs(Storage(str(tmp_path)), [])
        write_results(Storage(str(tmp_path)), samples=3)
        with pytest.raises(InputError, match=r"no run like nope\* among 6 run"):
            find_runs(Storage(str(tmp_path)), ["nope*"])


def explorer_of(report: Storage) -> dict[str, Any]:
    page = report.read_bytes().decode()
    found = page.split('<script type="application/json" id="explorer-data">')[1].split("</script>")[0]
    data: dict[str, Any] = json.loads(found)
    return data


def test_missing_evaluations_are_named(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = bench(tmp_path, tmp_path_factory.getbasetemp())
    other = made.bound.model_copy(update={"run": made.bound.run.model_copy(update={"seed": 8})})
    with pytest.raises(InputError, match=f"not evaluated yet: {KEY}, phantom/btinet/full/8; run `btinet evaluate RUN`"):
        publish_results(made.experiment, [made.bound, other], made.root)
    assert not (Path(made.root.path) / "analysis").exists()

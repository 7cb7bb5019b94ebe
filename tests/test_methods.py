"""Every method, from images to the tables that compare them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from btinet import cli
from btinet.analysis.detection import MANY_PASSES, REFERENCES
from btinet.binding import bind_all
from btinet.config import PRESETS, BoundRun, ModelSettings, load_experiment
from btinet.evaluation.evaluate import evaluate
from btinet.evaluation.outputs import predictions_file
from btinet.models.registry import METHODS, build, method_class
from btinet.partitions import read_partition
from btinet.results import headline_rows
from btinet.training.outputs import epochs_file
from btinet.training.stage import train_stage
from tests.training.micro import CPU, Bench, bench, one_thread  # noqa: F401

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
FEW = ["btinet", "dynashare", "mtan", "unet"]
"""Gates, policies, attention, no class: what differs most, for the fast tests."""
TRAIN = {"stage1": {"epochs": 2}, "stage2": {"epochs": 1}}
SEGMENT_ONLY = {name for name in METHODS if "clf" not in method_class(name).about.tasks}


class Compared(NamedTuple):
    bench: Bench
    bounds: dict[str, BoundRun]
    """By method."""
    printed: str
    """By ``btinet analyse``."""
    tables: dict[str, pa.Table]


@pytest.fixture(
    scope="module",
    params=[pytest.param(FEW, id="few"), pytest.param(list(METHODS), id="all", marks=pytest.mark.slow)],
)
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Methods trained, evaluated and analysed."""
    folder = tmp_path_factory.mktemp("methods")
    made = bench(folder, tmp_path_factory.getbasetemp(), methods=request.param, train=TRAIN)
    bounds = bind_all(made.experiment, made.root)
    for bound in bounds:
        for stage in bound.run.stages:
            train_stage(bound, stage, made.root, CPU)
        evaluate(bound, made.root, CPU)
    analysed = CliRunner().invoke(cli.app, ["analyse", "-e", str(made.file)], env={"COLUMNS": "200"})
    assert analysed.exit_code == 0, analysed.output
    files = (made.root / "analysis/micro").find(".parquet")
    tables = {file.name.removesuffix(".parquet"): file.read_table() for file in files}
    return Compared(made, {bound.run.method: bound for bound in bounds}, analysed.stdout, tables)


def test_every_method_trains(compared: Compared) -> None:
    for method, bound in compared.bounds.items():
        assert bound.run.stages == ((1, 2) if method == "btinet" else (1,))
        history = read_partition(epochs_file(compared.bench.root, bound, 1)).to_pylist()
        assert [row["epoch"] for row in history] == [1, 2], method
        assert ("train_clf" in history[0]) == ("val_accuracy" in history[0]) == (method not in SEGMENT_ONLY)


def test_predictions_have_what_the_method_gives(compared: Compared) -> None:
    for method, bound in compared.bounds.items():
        rows = read_partition(predictions_file(compared.bench.root, bound))
        classifies = method not in SEGMENT_ONLY
        present = {
            name: rows[name].null_count == 0 for name in ("iou", "y_pred", "correct", "probs", "w_seg", "mc_seg_var")
        }
        assert present.pop("iou"), method
        assert present.pop("w_seg") == (method == "btinet"), method
        varies = dropout_varies(method)
        assert present.pop("mc_seg_var") == varies["seg"], method
        assert (rows["mc_clf_entropy"].null_count == 0) == varies["clf"], method
        assert (rows["mc_T"].null_count == 0) == any(varies.values()), method
        assert set(present.values()) == {classifies}, method


def dropout_varies(method: str) -> dict[str, bool]:
    """Which of the method's predictions change from pass to pass with active dropout."""
    torch.manual_seed(0)
    model = build(method, ModelSettings.model_validate(PRESETS["tiny"]["model"]), classes=3).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        one, other = model(images), model(images)
    return {
        "seg": not torch.equal(one.seg_logits, other.seg_logits),
        "clf": one.clf_logits is not None and not torch.equal(one.clf_logits, other.clf_logits),
    }


def populations(rows: Iterable[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {(row["method"], row["task"], row["population"]) for row in rows}


def test_tables(compared: Compared) -> None:
    tables, everything = compared.tables, set(compared.bounds)
    table5, table6 = (tables[name].to_pylist() for name in ("table5", "table6"))
    assert {row["method"] for row in table5} == everything - SEGMENT_ONLY
    assert {row["method"] for row in table6} == everything
    assert [row["method"] for row in table6].index("btinet") == len(everything & SEGMENT_ONLY)
    for row in table5:
        predictions = read_partition(predictions_file(compared.bench.root, compared.bounds[row["method"]])).to_pylist()
        test = [sample for sample in predictions if (sample["stage"], sample["split"]) == (row["stage"], "test")]
        assert row["accuracy"] == pytest.approx(100 * sum(sample["correct"] for sample in test) / len(test))
    on_test = (row for row in tables["detection_runs"].to_pylist() if row["split"] == "test")
    defined = [row for row in on_test if row["auroc"] is not None]
    references = populations(row for row in defined if row["signal"] in REFERENCES)
    of_one_pass = populations(row for row in defined if row["signal"] not in MANY_PASSES)
    tested = populations(tables["signal_tests"].to_pylist())
    assert tested == references & of_one_pass  # some methods have failures only, or one score for all
    assert "btinet" in {method for method, _, _ in tested}
    for name, table in tables.items():
        if "method" in table.column_names and name != "signal_tests":
            methods = set(table["method"].to_pylist())
            assert methods in (set(), {"btinet"}, everything, everything - SEGMENT_ONLY, everything - {"btinet"}), name


def test_a_method_that_does_not_classify_has_a_dash(compared: Compared) -> None:
    rows = {row["setting"].split("/")[1]: row for row in headline_rows(compared.tables)}
    assert rows.keys() == compared.bounds.keys()
    assert {method for method, row in rows.items() if row["acc %"] == "–"} == SEGMENT_ONLY & rows.keys()
    assert {method for method, row in rows.items() if row["w_seg D1"] == "–"} >= rows.keys() - {"btinet"}


def test_the_page_and_the_terminal_show_them(compared: Compared) -> None:
    page = (compared.bench.root / "report/micro/index.html").read_bytes().decode()
    for table in ("table5", "table6"):
        assert f'<div id="{table}">' in page
    for bound in compared.bounds.values():
        assert bound.run_id in page
    for title in ("Table 5: joint methods", "Table 6: segmentation methods"):
        assert title in compared.printed


@pytest.mark.parametrize(
    ("number", "methods"),
    [
        (5, ["btinet", *(name for name in METHODS if name not in SEGMENT_ONLY | {"btinet"})]),
        (6, ["btinet", *(name for name in METHODS if name in SEGMENT_ONLY)]),
    ],
)
def test_experiments(number: int, methods: list[str]) -> None:
    """The full ones are the paper's datasets and seeds; the small ones have every method, on two cores."""

    def runs(name: str) -> list[str]:
        return [run.key for run in load_experiment(EXPERIMENTS / name).runs()]

    assert runs(f"table{number}.yaml") == [
        f"{dataset}/{method}/full/{seed}"
        for dataset in ("busi", "ham10000", "brisc2025")
        for method in methods
        for seed in (42, 123, 456)
    ]
    assert runs(f"table{number}-cpu.yaml") == [f"busi/{method}/full/42" for method in methods]
    full, small = (load_experiment(EXPERIMENTS / f"table{number}{suffix}.yaml") for suffix in ("", "-cpu"))
    assert (full.preset, small.preset) == ("paper", "paper")
    assert (full.resources.gpus_per_worker, small.resources.gpus_per_worker) == (1, 0)

"""Search files, their trials, and what is made of the scores; training is done here without Ray."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from btinet.binding import bind_all
from btinet.config import BoundRun, Experiment, load_experiment
from btinet.errors import InputError
from btinet.search import (
    Outcome,
    Search,
    best_experiment,
    best_of,
    bind_trials,
    counts,
    load_search,
    make_trials,
    publish_search,
    run_names,
    trial_rows,
    trials_table,
    unfinished,
)
from btinet.training.stage import train_stage
from tests.training.micro import CPU, bench, one_thread  # noqa: F401

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
TAU: dict[str, Any] = {"name": "tau", "experiment": "base.yaml", "space": {"model.tau": [0.3, 0.7]}}
RANGE = {"train.stage1.learning_rate": {"log_uniform": [1e-4, 1e-2]}, "model.dropout": {"uniform": [0.1, 0.4]}}


def base(**fields: Any) -> Experiment:
    return Experiment.model_validate({"name": "base", "preset": "tiny", "datasets": [{"name": "phantom"}]} | fields)


def search(**fields: Any) -> Search:
    return Search.model_validate(TAU | fields)


class TestFile:
    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"metric": "test_iou"}, "metric: Input should be 'val_iou', 'val_accuracy' or 'val_mean'"),
            ({"space": {}}, "space: Dictionary should have at least 1 item"),
            ({"space": {"model.tau": []}}, "space.model.tau.values: List should have at least 1 item"),
            ({"space": {"tau": [1]}}, "space: Value error, 'tau': give a setting of model, loss, train"),
            ({"space": {"evaluation.mc_passes": [1]}}, "give a setting of model, loss, train"),
            ({"space": {"model.tau": {"uniform": [2, 1]}}, "trials": 2}, "the first bound must be below the second"),
            ({"space": {"model.tau": {"log_uniform": [0, 1]}}, "trials": 2}, "the bounds must be above 0"),
            ({"space": {"model.tau": {"normal": [0, 1]}}, "trials": 2}, "space.model.tau.range.normal: unknown key"),
            ({"space": {"model.tau": {"uniform": [0.1, 1]}}}, "trials: say how many to draw"),
            ({"trials": 3}, "trials: say how many to draw"),
            ({"colour": 1}, "colour: unknown key"),
        ],
    )
    def test_faults(self, tmp_path: Path, fields: dict[str, Any], said: str) -> None:
        file = tmp_path / "search.yaml"
        file.write_text(yaml.safe_dump(TAU | fields))
        with pytest.raises(InputError) as caught:
            load_search(file)
        assert said in str(caught.value) and str(caught.value).startswith(f"{file}: ")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such search file; examples are in experiments/"):
            load_search(tmp_path / "nowhere.yaml")

    @pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("tune-*.yaml")), ids=lambda file: file.name)
    def test_those_of_the_project_are_valid(self, file: Path) -> None:
        found = load_search(file)
        trials = make_trials(found, load_experiment(EXPERIMENTS / found.experiment))
        assert len(trials) == {"tune-tau": 4, "tune-quick": 4, "tune-wide": 24, "tune-wide-quick": 6}[found.name]
        assert file.stem == found.name


class TestTrials:
    def test_every_combination_of_lists(self) -> None:
        space = {"model.tau": [0.3, 0.7], "loss.gate_weight": [0.5, 1.0, 2.0]}
        trials = make_trials(search(space=space), base(loss={"boundary": 0.1}))
        settings = [trial.experiment.runs()[0].settings for trial in trials]
        found = [(own.model.tau, own.loss.gate_weight) for own in settings]
        assert found == list(itertools.product([0.3, 0.7], [0.5, 1.0, 2.0]))
        assert {own.loss.boundary for own in settings} == {0.1}, "what the experiment sets stays"

    def test_draws_lie_in_their_range_and_stay_when_more_are_asked_for(self) -> None:
        few, many = (list(search(space=RANGE, trials=count).points()) for count in (5, 400))
        assert many[:5] == few
        assert few != list(search(space=RANGE, trials=5, seed=1).points())
        rates = [point["train.stage1.learning_rate"] for point in many]
        assert all(1e-4 <= rate <= 1e-2 for rate in rates)
        assert 0.4 < sum(rate < 1e-3 for rate in rates) / 400 < 0.6, "log-uniform: half below the geometric mean"
        dropouts = [point["model.dropout"] for point in many]
        assert min(dropouts) < 0.12 and max(dropouts) > 0.38
        assert all(value == float(f"{value:.4g}") for value in rates + dropouts)

    def test_a_point_that_is_not_valid_is_named_before_anything_runs(self) -> None:
        with pytest.raises(
            InputError, match=r"the trial model\.tau=99 is not possible\n.*model\.tau: .* \(given: 99\)"
        ):
            make_trials(search(space={"model.tau": [0.3, 99]}), base())
        with pytest.raises(InputError, match=r"model\.tua: unknown key"):
            make_trials(search(space={"model.tua": [0.3]}), base())

    def test_what_the_variant_sets_cannot_be_searched(self) -> None:
        with pytest.raises(InputError, match="variant 'no-gate-loss' sets what the space varies"):
            make_trials(search(space={"loss.gate_weight": [0.5, 1.0]}), base(variants=["no-gate-loss"]))

    @pytest.mark.parametrize(
        "fields",
        [
            {"datasets": [{"name": "phantom"}, {"name": "busi"}]},
            {"methods": ["btinet", "mtan"]},
            {"variants": ["full", "no-upa"]},
        ],
        ids=lambda fields: next(iter(fields)),
    )
    def test_one_dataset_method_and_variant(self, fields: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=f"{next(iter(fields))} has 2 entries, and a search is over one"):
            make_trials(search(), base(**fields))

    def test_accuracy_of_a_method_that_does_not_classify(self) -> None:
        with pytest.raises(InputError, match="unet does not classify: use val_iou"):
            make_trials(search(), base(methods=["unet"]))
        assert make_trials(search(metric="val_iou", space={"model.dropout": [0.1]}), base(methods=["unet"]))


def outcomes(scores: list[list[float]]) -> list[Outcome]:
    """Trials with these IoUs of two seeds each; accuracy is half of it."""
    trials = make_trials(search(space={"model.tau": [0.1 * n for n in range(1, len(scores) + 1)]}), base(seeds=[1, 2]))
    found = []
    for trial, values in zip(trials, scores, strict=True):
        bounds = [
            BoundRun(run=run, prepared="p", split=f"paper-s{run.seed}", weights_sha256=None)
            for run in trial.experiment.runs()
        ]
        own = Outcome(trial, bounds, {})
        pairs = zip(own.bounds, values, strict=False)
        found.append(own._replace(scores={bound.run_id: score(value) for bound, value in pairs}))
    return found


def score(iou: float) -> dict[str, float]:
    return {"val_iou": iou, "val_accuracy": iou / 2, "val_mean": 0.75 * iou}


class TestResults:
    def test_means_over_seeds_and_the_best(self) -> None:
        found = outcomes([[0.2, 0.4], [0.5, 0.3], [0.9], []])
        assert best_of(search(), found) is found[1], "a trial of which a seed is missing is not compared"
        table = trials_table(search(), found, {found[2].bounds[1].run_id: "not finite"}).to_pylist()
        assert [row["trial"] for row in table] == [1, 2, 3, 4]
        assert table[1]["val_iou"] == pytest.approx(0.4) and table[1]["score"] == pytest.approx(0.3)
        assert table[1]["val_iou_std"] == pytest.approx(0.02**0.5)
        assert (table[2]["score"], table[2]["failure"]) == (None, "not finite")
        rows = trial_rows(search(), found)
        assert [row["trial"] for row in rows] == ["2", "1", "3", "4"]
        assert rows[0]["val IoU %"] == "40.0±14.1" and rows[3]["score %"] == "–"

    def test_none_finished(self) -> None:
        assert best_of(search(), outcomes([[], [0.5]])) is None

    def test_first_of_equals(self) -> None:
        found = outcomes([[0.5, 0.5], [0.5, 0.5]])
        assert best_of(search(), found) is found[0]


def test_from_data_to_best_file(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs of a search are ordinary runs, and the best file's runs are those that the search trained."""
    made = bench(tmp_path / "micro", tmp_path_factory.getbasetemp(), train={"stage1": {"epochs": 1}})
    wanted = search(space={"model.tau": [0.3, 0.7]}, metric="val_iou")
    found = bind_trials(make_trials(wanted, made.experiment), made.root)
    assert [len(outcome.unfinished) for outcome in found] == [1, 1]
    assert [bound.run_id for bound in found[1].bounds] == [made.bound.run_id], "tau 0.7 is the default"
    assert run_names(found)[made.bound.run_id] == "trial 2/2 (model.tau=0.7) seed 7"
    for outcome in found:
        for stage in (1, 2):
            train_stage(outcome.bounds[0], stage, made.root, CPU)
    assert counts(found) == "2 trial(s), 2 run(s), 0 of them done already"

    result = publish_search(wanted, found, {}, made.root)
    best = result.best
    assert best is not None and unfinished(result.outcomes) == []
    assert counts(result.outcomes) == "2 trial(s), 2 run(s), 2 of them done already"
    table = result.trials.read_table()
    assert table["model.tau"].to_pylist() == [0.3, 0.7]
    assert max(table["score"].to_pylist()) == best.mean("val_iou")
    text = result.experiment.read_bytes().decode()
    assert text == best_experiment(wanted, best, 2)
    file = tmp_path / "best.yaml"
    file.write_text(text)
    experiment = load_experiment(file)
    assert experiment.name == "tau-best"
    assert [bound.run_id for bound in bind_all(experiment, made.root)] == [bound.run_id for bound in best.bounds]

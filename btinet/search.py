"""A search over settings: its file, its trials, and what comes of it. Ray Tune trains them (btinet/cluster/tune.py).

A trial is an experiment with other settings, and its runs are ordinary runs, known by their ``run_id``: a search that
was interrupted finds what is done, as does another search, or an experiment, with the same settings. Trials are
compared on the validation split; nothing here reads the test split.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator
from rich import box
from rich.table import Table

from btinet.binding import bind, check_inputs, prepare_dataset, publish_weights
from btinet.config import BoundRun, Experiment, Overrides, Strict, faults, load_experiment, load_file, merge
from btinet.errors import InputError
from btinet.models.registry import method_class
from btinet.storage import Storage
from btinet.training.outputs import finished_stage

SEARCHED = ("model", "loss", "train")
"""Sections of an experiment that a search may vary: the others leave validation as it is, or need other images."""
DIGITS = 4
"""Significant digits of a drawn value, so that it can be read and typed."""

Value = Any
"""Of one setting: whatever YAML and that setting allow."""


class Range(Strict):
    """Values drawn between two bounds: ``uniform``, or ``log_uniform`` for what matters by its order of magnitude."""

    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one_that_ascends(self) -> Range:
        bounds = [given for given in (self.uniform, self.log_uniform) if given is not None]
        if len(bounds) != 1:
            raise ValueError("give either uniform: [low, high] or log_uniform: [low, high]")
        if not bounds[0][0] < bounds[0][1]:
            raise ValueError("the first bound must be below the second")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError("log_uniform: the bounds must be above 0")
        return self

    def draw(self, random: np.random.Generator) -> float:
        if self.log_uniform is not None:
            low, high = map(math.log, self.log_uniform)
            value = math.exp(random.uniform(low, high))
        else:
            assert self.uniform is not None
            value = random.uniform(*self.uniform)
        return float(f"{value:.{DIGITS}g}")


Choices = Annotated[
    Annotated[list[Value], Field(min_length=1), Tag("values")] | Annotated[Range, Tag("range")],
    Discriminator(lambda given: "values" if isinstance(given, list) else "range"),
]


class Search(Strict):
    """A search file (docs/tuning.md)."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    experiment: str
    """Experiment file to vary, relative to the search file: one dataset, method and variant; a trial's score is the
    mean over its seeds."""
    space: dict[str, Choices] = Field(min_length=1)
    """Setting, e.g. ``model.tau`` -> its values: a list, or a range to draw from."""
    trials: int | None = Field(None, ge=1)
    """Trials to draw where the space has a range; with lists only, every combination is a trial."""
    seed: int = Field(0, ge=0)
    """Of the draws. The first trials stay the same when ``trials`` is raised."""
    metric: Literal["val_iou", "val_accuracy", "val_mean"] = "val_mean"
    """What is maximised, of the validation split at the best epoch of the last stage; ``val_mean`` is the mean of IoU
    and accuracy."""

    @field_validator("space")
    @classmethod
    def _settings_to_search(cls, space: dict[str, Choices]) -> dict[str, Choices]:
        for name in space:
            if name.split(".")[0] not in SEARCHED or "." not in name:
                raise ValueError(f"{name!r}: give a setting of {', '.join(SEARCHED)}, e.g. model.tau")
        return space

    @model_validator(mode="after")
    def _trials_where_drawn(self) -> Search:
        if any(isinstance(choices, Range) for choices in self.space.values()) != (self.trials is not None):
            raise ValueError(
                "trials: say how many to draw where the space has a range, and only there: of lists every combination "
                "is tried"
            )
        return self

    def points(self) -> Iterator[dict[str, Value]]:
        """The trials' values, setting by setting."""
        if self.trials is None:
            for values in itertools.product(*self.space.values()):
                yield dict(zip(self.space, values, strict=True))
            return
        for number in range(self.trials):
            random = np.random.default_rng([self.seed, number])
            yield {
                name: choices.draw(random) if isinstance(choices, Range) else choices[random.integers(len(choices))]
                for name, choices in self.space.items()
            }


class Trial(NamedTuple):
    """One point of the space."""

    values: dict[str, Value]
    experiment: Experiment
    """The search's experiment with these values."""

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.values.items())


class Outcome(NamedTuple):
    """What is known of a trial, finished or not."""

    trial: Trial
    bounds: list[BoundRun]
    scores: dict[str, dict[str, float]]
    """Of each finished run, by run_id: val_iou, and where the method classifies val_accuracy and val_mean."""

    @property
    def unfinished(self) -> list[BoundRun]:
        return [bound for bound in self.bounds if bound.run_id not in self.scores]

    def mean(self, metric: str) -> float | None:
        """Over the runs; None while one is not finished, or where the method has no such metric."""
        values = self._values(metric)
        return statistics.mean(values) if values else None

    def std(self, metric: str) -> float | None:
        """Sample standard deviation over the runs; None below two."""
        values = self._values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

    def _values(self, metric: str) -> list[float]:
        if self.unfinished:
            return []
        return [score[metric] for score in self.scores.values() if metric in score]


class Result(NamedTuple):
    """What a search has left in ``searches/<name>/``."""

    outcomes: list[Outcome]
    best: Outcome | None
    """None where no trial is finished."""
    trials: Storage
    """trials.parquet: a row a trial."""
    experiment: Storage
    """best.yaml; not written where there is no best."""
    failures: list[str]
    """Run and reason."""


def open_search(
    file: Path,
    storage: str | None = None,
    endpoint: str | None = None,
    data_root: str | None = None,
    weights: str | None = None,
) -> tuple[Search, list[Trial]]:
    """Read a search file and the experiment that it varies, with these in place of the experiment's own.

    Raises:
        InputError: every fault of the file, of the experiment, or of a trial.
    """
    search = load_search(file)
    base = load_experiment(file.parent / search.experiment, data_root=data_root, weights=weights)
    base = base.with_storage(storage, endpoint)
    check_inputs(base)
    return search, make_trials(search, base)


def load_search(file: Path) -> Search:
    """Read a search file.

    Raises:
        InputError: every fault of the file.
    """
    return load_file(file, Search, example="experiments/tune-quick.yaml")


def make_trials(search: Search, base: Experiment) -> list[Trial]:
    """The search's trials, each validated; equal draws are one trial.

    Raises:
        InputError: the experiment is not one to search over, or a point of the space is not valid.
    """
    for field in ("datasets", "methods", "variants"):
        if len(getattr(base, field)) > 1:
            raise InputError(
                f"{search.experiment}: {field} has {len(getattr(base, field))} entries, and a search is over one: "
                "its score is a mean over seeds only"
            )
    if search.metric != "val_iou" and "clf" not in method_class(base.methods[0]).about.tasks:
        raise InputError(f"metric: {base.methods[0]} does not classify: use val_iou")
    trials: dict[str, Trial] = {}
    seen: dict[str, Trial] = {}
    for values in search.points():
        trial = _trial(search, base, values)
        settings = trial.experiment.runs()[0].settings.model_dump_json()
        if settings in seen and seen[settings].values != values:
            raise InputError(
                f"space: {seen[settings]} and {trial} are the same settings: variant {base.variants[0]!r} sets what "
                "the space varies"
            )
        seen[settings] = trial
        trials.setdefault(json.dumps(values, sort_keys=True), trial)
    return list(trials.values())


def bind_trials(
    trials: list[Trial], root: Storage, on_progress: Callable[[int, int], None] | None = None
) -> list[Outcome]:
    """Prepare the data and tie every trial to it; says what is finished of each."""
    first = trials[0].experiment
    (dataset,) = first.datasets
    prepared = prepare_dataset(first, dataset, root, on_progress).manifest.hash
    weights = [publish_weights(trial.experiment, root) for trial in trials]
    bounds = [
        [bind(run, prepared, sha256) for run in trial.experiment.runs()]
        for trial, sha256 in zip(trials, weights, strict=True)
    ]
    return read_scores([Outcome(trial, own, {}) for trial, own in zip(trials, bounds, strict=True)], root)


def read_scores(found: list[Outcome], root: Storage) -> list[Outcome]:
    """The trials with the scores of those runs that are finished by now, from their receipts."""
    return [
        outcome._replace(
            scores={bound.run_id: score for bound in outcome.bounds if (score := _score(bound, root)) is not None}
        )
        for outcome in found
    ]


def unfinished(found: list[Outcome]) -> list[BoundRun]:
    return [bound for outcome in found for bound in outcome.unfinished]


def counts(found: list[Outcome]) -> str:
    """How much there is to do, for a person."""
    runs = sum(len(outcome.bounds) for outcome in found)
    return f"{len(found)} trial(s), {runs} run(s), {runs - len(unfinished(found))} of them done already"


def run_names(found: list[Outcome]) -> dict[str, str]:
    """run_id -> what to call the run in the search: trial, values, seed."""
    return {
        bound.run_id: f"trial {number}/{len(found)} ({outcome.trial}) seed {bound.run.seed}"
        for number, outcome in enumerate(found, start=1)
        for bound in outcome.bounds
    }


def best_of(search: Search, found: list[Outcome]) -> Outcome | None:
    """The finished trial with the highest score, the first of equals; None where none is finished."""
    finished = [outcome for outcome in found if not outcome.unfinished]
    return max(finished, key=lambda outcome: outcome.mean(search.metric) or 0.0, default=None)


def publish_search(search: Search, found: list[Outcome], failures: dict[str, str], root: Storage) -> Result:
    """Read the scores of what has been trained since, and write ``searches/<name>/``.

    Args:
        failures: run_id -> why it failed.
    """
    folder = root / "searches" / search.name
    found = read_scores(found, root)
    names = run_names(found)
    result = Result(
        found,
        best_of(search, found),
        folder / "trials.parquet",
        folder / "best.yaml",
        [f"{names[run_id]} failed: {reason}" for run_id, reason in failures.items()],
    )
    result.trials.write_table(trials_table(search, found, failures))
    if result.best is not None:
        result.experiment.write_text(best_experiment(search, result.best, len(found)))
    return result


def trials_table(search: Search, found: list[Outcome], failures: dict[str, str]) -> pa.Table:
    """A row a trial, in the order of the search."""
    columns: dict[str, list[Any]] = {"trial": list(range(1, len(found) + 1))}
    columns |= {name: [outcome.trial.values[name] for outcome in found] for name in search.space}
    for metric in ("val_iou", "val_accuracy"):
        columns[metric] = [outcome.mean(metric) for outcome in found]
        columns[f"{metric}_std"] = [outcome.std(metric) for outcome in found]
    columns["score"] = [outcome.mean(search.metric) for outcome in found]
    columns["failure"] = [
        "; ".join(failures[bound.run_id] for bound in outcome.bounds if bound.run_id in failures) or None
        for outcome in found
    ]
    columns["run_ids"] = [[bound.run_id for bound in outcome.bounds] for outcome in found]
    types = dict.fromkeys(("val_iou", "val_iou_std", "val_accuracy", "val_accuracy_std", "score"), pa.float64())
    types |= {"failure": pa.string()}
    return pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})


def best_experiment(search: Search, best: Outcome, count: int) -> str:
    """The best trial as an experiment file. Its runs are trained already: running it evaluates them."""
    score = best.mean(search.metric)
    heading = (
        f"# The best of {count} trials of the search {search.name}: {best.trial}\n"
        f"# {search.metric} {score:.4f} on the validation split, mean over seeds {list(best.trial.experiment.seeds)}.\n"
    )
    content = best.trial.experiment.model_dump(mode="json", exclude_unset=True)
    return heading + yaml.safe_dump(content, sort_keys=False)


def terminal_table(search: Search, found: list[Outcome]) -> Table:
    """The trials for a terminal, best first, unfinished ones last."""
    rows = trial_rows(search, found)
    table = Table(
        title=f"search {search.name}",
        caption=f"validation split, mean±std over seeds; score: {search.metric}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in rows[0]:
        table.add_column(column, justify="left" if column in search.space else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    return table


def trial_rows(search: Search, found: list[Outcome]) -> list[dict[str, str]]:
    """The same as text, a row a trial."""
    numbered = list(enumerate(found, start=1))
    numbered.sort(key=lambda pair: -(pair[1].mean(search.metric) or -1.0))
    return [
        {
            "trial": str(number),
            **{name: str(value) for name, value in outcome.trial.values.items()},
            "val IoU %": _percent(outcome, "val_iou"),
            "val acc %": _percent(outcome, "val_accuracy"),
            "score %": _percent(outcome, search.metric),
        }
        for number, outcome in numbered
    ]


def _percent(outcome: Outcome, metric: str) -> str:
    mean, std = outcome.mean(metric), outcome.std(metric)
    if mean is None:
        return "–"
    return f"{100 * mean:.1f}" if std is None else f"{100 * mean:.1f}±{100 * std:.1f}"


def _trial(search: Search, base: Experiment, values: dict[str, Value]) -> Trial:
    content = base.model_dump(exclude_unset=True) | {"name": f"{search.name}-best"}
    for name, value in values.items():
        nested: Overrides = {}
        *sections, setting = name.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[setting] = value
        content = merge(content, nested)
    try:
        return Trial(values, Experiment.model_validate(content))
    except ValidationError as error:
        problems = "\n".join(faults(error, "experiment"))
        point = ", ".join(f"{name}={value}" for name, value in values.items())
        raise InputError(f"space: the trial {point} is not possible\n{problems}") from error


def _score(bound: BoundRun, root: Storage) -> dict[str, float] | None:
    """Of a finished run."""
    receipts = [finished_stage(bound, stage, root) for stage in bound.run.stages]
    if None in receipts:
        return None
    assert receipts[-1] is not None
    metrics = receipts[-1].metrics
    score = {name: float(value) for name in ("val_iou", "val_accuracy") if (value := metrics[name]) is not None}
    if "val_accuracy" in score:
        score["val_mean"] = (score["val_iou"] + score["val_accuracy"]) / 2
    return score

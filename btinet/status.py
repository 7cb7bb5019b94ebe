"""Where the runs of an experiment are, and how long the rest will take: told from storage alone.

Neither the datasets nor a cluster are needed. A run is found by its name, and is the experiment's if its settings are
and today's code would train it alike.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from pydantic import ValidationError

from btinet.config import NUMERICS, BoundRun, Experiment, Run
from btinet.evaluation.outputs import finished_evaluation
from btinet.progress import Failure, Progress, read_failure, read_progress
from btinet.receipts import Receipt
from btinet.storage import Storage
from btinet.training.outputs import finished_stage, run_folder

SILENT_SECONDS = 120.0
"""A run that has written no progress for so long is not called running. Validation and its start may take a while."""
LIKE = 5
"""At most so many runs of other experiments are read to estimate the time of one that is like them."""
READERS = 16
"""Requests to storage at once."""

EVALUATION = "evaluation"


class RunState(NamedTuple):
    """A run as its files show it."""

    run: Run
    bound: BoundRun | None
    """None: it was never started."""
    receipts: dict[str, Receipt]
    """Of finished steps: ``stage1``, ``stage2``, ``evaluation``."""
    progress: dict[str, dict[str, Any]]
    """What each step last wrote about its progress."""
    failure: Failure | None

    @property
    def step(self) -> str | None:
        """The first step that is not done; None when all are."""
        return next((step for step in steps(self.run) if step not in self.receipts), None)

    @property
    def last_sign(self) -> float:
        """When it last wrote something, in seconds since 1970; 0 if never."""
        times = [content["time"] for content in self.progress.values()]
        return max(times + ([self.failure.time] if self.failure else []), default=0.0)

    @property
    def word(self) -> str:
        """``done``, ``failed``, ``running``, ``interrupted`` or ``to do``."""
        if self.step is None:
            return "done"
        if self.failure is not None and self.failure.time >= self.last_sign:
            return "failed"
        if self.bound is None:
            return "to do"
        return "running" if time.time() - self.last_sign < SILENT_SECONDS else "interrupted"

    @property
    def current(self) -> Progress | None:
        """Where the stage that is being trained is."""
        content = self.progress.get(self.step or "", {}).get("progress")
        return Progress(**content) if content else None

    def unit_seconds(self, step: str) -> float | None:
        """Seconds an epoch (of a stage) or in all (of the evaluation) took, or take at present."""
        receipt = self.receipts.get(step)
        if receipt is not None:
            return receipt.wall_seconds / (1 if step == EVALUATION else int(receipt.metrics["epochs"] or 1))
        if step == self.step and (progress := self.current) is not None and progress.last is not None:
            return float(progress.last["seconds"])
        return None


def steps(run: Run) -> tuple[str, ...]:
    """What a run goes through, in order."""
    return (*(f"stage{stage}" for stage in run.stages), EVALUATION)


def progress_file(root: Storage, run_id: str, step: str) -> Storage:
    folder = run_folder(root, run_id)
    return folder / "evaluation-progress.json" if step == EVALUATION else folder / step / "progress.json"


def failure_file(root: Storage, run_id: str) -> Storage:
    """Where the run's last error is, until the step is done after all."""
    return run_folder(root, run_id) / "failure.json"


def stage_of(step: str) -> int:
    """The number of the stage that a step trains."""
    return int(step.removeprefix("stage"))


def finished_step(bound: BoundRun, step: str, root: Storage) -> Receipt | None:
    """The step's receipt, if it is done."""
    return finished_evaluation(bound, root) if step == EVALUATION else finished_stage(bound, stage_of(step), root)


def is_finished(bound: BoundRun, root: Storage) -> bool:
    """All steps of the run are done."""
    return all(finished_step(bound, step, root) for step in steps(bound.run))


def latest_message(bound: BoundRun, root: Storage, since: float) -> str | None:
    """What the run last wrote about its progress, if that was after ``since``."""
    found = [
        (content["time"], step, content)
        for step in steps(bound.run)
        if (content := read_progress(progress_file(root, bound.run_id, step))) is not None
    ]
    if not found or (latest := max(found))[0] <= since:
        return None
    _, step, content = latest
    return told(step, content)[0]


def told(step: str, content: dict[str, Any]) -> tuple[str, bool]:
    """What a step wrote about its progress, in words, and whether it was at an end: an epoch's, or its own."""
    if step == EVALUATION:
        return f"evaluation  batch {content['done']}/{content['total']}", content["done"] == content["total"]
    progress = Progress(**content["progress"])
    return str(progress), progress.step == progress.steps


def run_states(experiment: Experiment, root: Storage) -> list[RunState]:
    """Every run of the experiment, in its order."""
    names = [folder.name for folder in (root / "runs").children()]
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda run: _state(run, names, root), experiment.runs()))


def seconds_left(states: list[RunState], root: Storage) -> list[float | None]:
    """How long each run will take from here, at most; None where nothing like it has been trained in this storage.

    A stage takes its budget of epochs (early stopping may end it sooner) at the pace of runs with the same dataset,
    method, preset, image size and batch size: this experiment's, or else others in the storage.
    """
    names = [folder.name for folder in (root / "runs").children()]
    known: dict[tuple[Any, ...], list[RunState]] = {}
    for state in states:
        known.setdefault(_kind(state.run), []).append(state)
    for kind, alike in known.items():
        if not any(state.receipts for state in alike):
            known[kind] = [*alike, *_others(alike[0].run, names, root)]
    return [_seconds_left(state, known[_kind(state.run)]) for state in states]


def _kind(run: Run) -> tuple[Any, ...]:
    """Runs that are alike in this take about the same time an epoch."""
    settings = run.settings
    return run.dataset, run.method, run.preset, settings.image_size, settings.train.batch_size, settings.model.encoder


def _seconds_left(state: RunState, alike: Iterable[RunState]) -> float | None:
    total = 0.0
    for step in steps(state.run):
        if step in state.receipts:
            continue
        paces = [pace for other in (state, *alike) if (pace := other.unit_seconds(step)) is not None]
        if not paces:
            return None
        if step == EVALUATION:
            total += sum(paces) / len(paces)
            continue
        train = state.run.settings.train
        epochs = train.stage1.epochs if step == "stage1" else train.stage2.epochs
        finished = state.current.epoch - 1 if step == state.step and state.current is not None else 0
        total += (epochs - finished) * sum(paces) / len(paces)
    return total


def _state(run: Run, names: list[str], root: Storage) -> RunState:
    prefix = re.escape(f"{run.key.replace('/', '-')}-{run.preset}-")
    found = _read_all((name for name in names if re.fullmatch(f"{prefix}[0-9a-f]{{10}}", name)), root)
    # evaluation settings are not part of what a run is
    states = [
        read_state(bound.model_copy(update={"run": run}), root)
        for bound in found
        if bound.numerics == NUMERICS and _is_same(bound.run, run)
    ]
    return max(states, key=lambda state: state.last_sign, default=RunState(run, None, {}, {}, None))


def _is_same(one: Run, other: Run) -> bool:
    def trained(run: Run) -> Run:
        return run.model_copy(update={"settings": run.settings.model_copy(update={"evaluation": None})})

    return trained(one) == trained(other)


def _others(run: Run, names: list[str], root: Storage) -> list[RunState]:
    """Up to LIKE runs of this kind, whatever their experiment, seed and variant."""
    alike = (name for name in names if name.startswith(f"{run.dataset.name}-{run.method}-"))
    states = (read_state(bound, root) for bound in _read_all(alike, root) if _kind(bound.run) == _kind(run))
    return [state for state, _ in zip(states, range(LIKE), strict=False)]


def _read_all(names: Iterable[str], root: Storage) -> Iterable[BoundRun]:
    """The runs in these folders, but for those of another version of the settings."""
    for name in names:
        content = read_progress(run_folder(root, name) / "run.json")
        try:
            bound = BoundRun.model_validate(content)
        except ValidationError:
            continue
        if bound.run_id == name:
            yield bound


def read_state(bound: BoundRun, root: Storage) -> RunState:
    """Where a run is."""
    receipts = {step: finished_step(bound, step, root) for step in steps(bound.run)}
    contents = {step: read_progress(progress_file(root, bound.run_id, step)) for step in steps(bound.run)}
    return RunState(
        bound.run,
        bound,
        {step: receipt for step, receipt in receipts.items() if receipt is not None},
        {step: content for step, content in contents.items() if content is not None},
        read_failure(failure_file(root, bound.run_id)),
    )

"""What each stage changes and when it stops."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from btinet.config import LossSettings, TrainSettings
from btinet.errors import NonFiniteLossError
from btinet.progress import Progress
from btinet.ranks import Ranks
from btinet.storage import Storage
from btinet.training import loop
from btinet.training.checkpoint import Checkpoints
from btinet.training.data import SplitData
from btinet.training.loop import Trained, fit
from btinet.training.tasks import Task
from tests.training.micro import SEED, Bench


def run_fit(
    task: Task,
    train: SplitData,
    val: SplitData,
    settings: TrainSettings,
    folder: Path,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> Trained:
    return fit(task, train, val, settings, SEED, Checkpoints(Storage(str(folder))), on_step, lambda history: None)


def weights(bench: Bench, stage: int) -> dict[str, Tensor]:
    return load_file(bench.folder(stage) / "model.safetensors")


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


class TestWhatIsTrained:
    def test_stage_2_trains_the_gates_and_nothing_else(self, micro: Callable[..., Bench]) -> None:
        bench = micro(train={"stage1": {"epochs": 1}, "stage2": {"epochs": 2}})
        bench.train(1, 2)
        before, after = weights(bench, 1), weights(bench, 2)
        assert any(name.endswith("running_mean") for name in before)
        assert any(name.endswith("num_batches_tracked") for name in before)
        parts = ("project_seg.weight", "project_clf.weight", "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias")
        assert changed(before, after) == {f"upa.{level}.{part}" for level in range(4) for part in parts}

    def test_stage_1_trains_everything(self, micro: Callable[..., Bench]) -> None:
        bench = micro(train={"stage1": {"epochs": 1}})
        task = bench.task(1)
        before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
        trained = run_fit(task, bench.data("train"), bench.data("val"), bench.bound.run.settings.train, bench.folder(1))
        assert before.keys() - changed(before, task.model.state_dict()) == set()
        assert trained.best_weights.keys() == before.keys()

    def test_gate_weight_has_no_part_in_stage_1(self, micro: Callable[..., Bench], tmp_path: Path) -> None:
        bench = micro(train={"stage1": {"epochs": 1}})
        states = []
        for gate_weight in (1.0, 0.0):
            task = bench.task(1)
            task.settings = LossSettings(gate_weight=gate_weight)
            run_fit(
                task,
                bench.data("train"),
                bench.data("val"),
                bench.bound.run.settings.train,
                tmp_path / str(gate_weight),
            )
            states.append(task.model.state_dict())
        assert not changed(*states)

    def test_stage_2_stays_in_evaluation_mode(self, micro: Callable[..., Bench]) -> None:
        task = micro().task(2)
        task.train()
        assert not any(module.training for module in task.modules())
        assert {name for name, p in task.model.named_parameters() if p.requires_grad} == {
            name for name, _ in task.model.named_parameters() if name.startswith("upa.")
        }

    def test_stage_2_minimises_the_weighted_gate_loss(self, micro: Callable[..., Bench]) -> None:
        bench = micro(loss={"gate_weight": 0.5})
        task = bench.task(2)
        losses = task(bench.data("train").batch(np.arange(4)), Ranks())
        assert losses.keys() == {"gate"}
        assert task.balance().total(losses).item() == pytest.approx(0.5 * losses["gate"].item(), rel=1e-6)
        assert losses["gate"].item() > 0

    def test_stage_1_minimises_the_weighted_task_losses(self, micro: Callable[..., Bench]) -> None:
        bench = micro()
        task = bench.task(1)
        losses = task(bench.data("train").batch(np.arange(4)), Ranks())
        assert losses.keys() == {"tversky", "boundary", "texture", "seg", "clf"}
        expected = 0.82 * losses["seg"].item() + 0.18 * losses["clf"].item()
        assert task.balance().total(losses).item() == pytest.approx(expected, rel=1e-6)

    def test_stage_1_can_learn(self, micro: Callable[..., Bench]) -> None:
        """Seven images, again and again, without augmentation or dropout."""
        bench = micro(
            model={"dropout": 0.0},
            loss={"balance": "fixed"},
            train={
                "flip_probability": 0,
                "rotate_probability": 0,
                "plateau_patience": 20,
                "stage1": {"epochs": 20, "patience": 20, "learning_rate": 5e-3},
            },
        )
        few = SplitData(bench.prepared(), bench.data("train").rows[:7], torch.device("cpu"))
        trained = run_fit(bench.task(1), few, few, bench.bound.run.settings.train, bench.folder(1))
        first, last = trained.history[0], trained.history[-1]
        assert last["train_seg"] < 0.75 * first["train_seg"]
        assert last["train_clf"] < 0.1 * first["train_clf"]


class TestDeterminism:
    @pytest.fixture
    def trained(self, micro: Callable[..., Bench], tmp_path: Path) -> Callable[[int], dict[str, Tensor]]:
        bench = micro(train={"stage1": {"epochs": 1}})

        def train(seed: int) -> dict[str, Tensor]:
            task = bench.task(1)
            folder = Storage(str(tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}"))
            data = bench.data("train"), bench.data("val")
            settings = bench.bound.run.settings.train
            fit(task, *data, settings, seed, Checkpoints(folder), lambda _: None, lambda _: None)
            return task.model.state_dict()

        return train

    def test_same_seed_same_weights_whatever_was_drawn_before(
        self, trained: Callable[[int], dict[str, Tensor]]
    ) -> None:
        one = trained(3)
        torch.rand(11)
        np.random.default_rng().random(5)
        assert not changed(one, trained(3))

    def test_another_seed_other_weights(self, trained: Callable[[int], dict[str, Tensor]]) -> None:
        assert len(changed(trained(3), trained(4))) > 100


def halves(start: float, *steps: int) -> list[float]:
    """A learning rate per epoch: how often it has been halved."""
    return [start / 2**count for count in steps]


SCHEDULES: dict[str, tuple[dict[str, Any], list[float], list[float], int, str]] = {
    # stage settings and plateau, monitored values, learning rates, best epoch, why it stopped
    "halved after every second epoch that is not better; early stop": (
        {"epochs": 20, "patience": 4, "plateau": 2},
        [0.3, 0.2, 0.2, 0.4, 0.4, 0.1, 0.1, 0.1],
        halves(4e-3, 0, 0, 0, 1, 1, 1, 2, 2),
        4,
        "early",
    ),
    "the paper's five and ten": (
        {"epochs": 50, "patience": 10, "plateau": 5},
        [0.1, 0.5, *[0.2] * 10],
        halves(4e-3, *[0] * 7, *[1] * 5),
        2,
        "early",
    ),
    "better each time": (
        {"epochs": 4, "patience": 1, "plateau": 1},
        [0.1, 0.2, 0.3, 0.4],
        halves(4e-3, 0, 0, 0, 0),
        4,
        "budget",
    ),
    "equal is not better": (
        {"epochs": 9, "patience": 2, "plateau": 1},
        [0.1, 0.1, 0.1],
        halves(4e-3, 0, 0, 1),
        1,
        "early",
    ),
    "an improvement restarts both counts": (
        {"epochs": 6, "patience": 3, "plateau": 3},
        [0.1, 0.0, 0.0, 0.2, 0.0, 0.0],
        halves(4e-3, *[0] * 6),
        4,
        "budget",
    ),
    "patience and budget end together": (
        {"epochs": 3, "patience": 2, "plateau": 5},
        [0.3, 0.2, 0.1],
        halves(4e-3, 0, 0, 0),
        1,
        "budget",
    ),
    "not below the least learning rate": (
        {"epochs": 9, "patience": 5, "plateau": 1, "learning_rate": 3e-6},
        [0.3, 0.2, 0.2, 0.2, 0.2, 0.2],
        [3e-6, 3e-6, 1.5e-6, 1e-6, 1e-6, 1e-6],
        1,
        "early",
    ),
}


class TestSchedule:
    @pytest.mark.parametrize("stage, name", [(1, next(iter(SCHEDULES))), *((2, name) for name in SCHEDULES)])
    def test_schedule(
        self, micro: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, name: str, stage: int
    ) -> None:
        """Real training on given validation values: IoU, the greater the better, or gate loss, the smaller."""
        given, values, rates, best, stopped = SCHEDULES[name]
        script = iter(values)

        def validate(*_: Any) -> dict[str, float]:
            value = next(script)
            return {"val_iou": value, "val_gate": 1 - value, "val_accuracy": 0.5, "val_seg": 1.0, "val_clf": 1.0}

        monkeypatch.setattr(loop, "_validate", validate)
        bench = micro()
        budget = {"learning_rate": 4e-3} | {key: value for key, value in given.items() if key != "plateau"}
        settings = TrainSettings.model_validate(
            {"batch_size": 28, "plateau_patience": given["plateau"], "stage1": budget, "stage2": budget}
        )
        trained = run_fit(bench.task(stage), bench.data("train"), bench.data("val"), settings, bench.folder(stage))
        assert [row["learning_rate"] for row in trained.history] == pytest.approx(rates, rel=1e-9)
        assert [row["epoch"] for row in trained.history] == list(range(1, len(values) + 1))
        assert (trained.best_epoch, trained.stopped) == (best, stopped)

    def test_the_best_epochs_weights_are_left(
        self, micro: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values = iter([0.5, 0.4, 0.6, 0.3])
        after_epoch: list[dict[str, Tensor]] = []

        def validate(task: Task, *_: Any) -> dict[str, float]:
            after_epoch.append({name: tensor.clone() for name, tensor in task.trained.state_dict().items()})
            return {"val_iou": 0.1, "val_gate": next(values), "val_accuracy": 0.5, "val_seg": 1.0, "val_clf": 1.0}

        monkeypatch.setattr(loop, "_validate", validate)
        bench = micro(train={"stage2": {"epochs": 4, "patience": 9}})
        settings = bench.bound.run.settings.train
        trained = run_fit(bench.task(2), bench.data("train"), bench.data("val"), settings, bench.folder(2))
        assert trained.best_epoch == 4
        assert not changed(trained.best_weights, after_epoch[3])
        assert changed(trained.best_weights, after_epoch[2])


class TestNonFiniteLoss:
    @pytest.mark.parametrize("stage", [1, 2])
    def test_names_the_samples_and_leaves_no_checkpoint(self, micro: Callable[..., Bench], stage: int) -> None:
        bench = micro()
        task, train = bench.task(stage), bench.data("train")
        bias = task.model.seg_head.conv[2].bias if stage == 1 else task.model.upa[3].mlp[2].bias
        with torch.no_grad():
            bias.fill_(math.nan)
        batch = next(train.shuffled(7, [SEED, stage, 1], Ranks()))
        ids = ", ".join(f"phantom-{row:06d}" for row in batch.rows)
        with pytest.raises(
            NonFiniteLossError, match=f"stage {stage}, epoch 1, step 1: the loss is nan .*{ids}; look at"
        ):
            run_fit(task, train, bench.data("val"), bench.bound.run.settings.train, bench.folder(stage))
        assert not bench.folder(stage).exists()

    def test_message_lists_the_losses(self, micro: Callable[..., Bench]) -> None:
        bench = micro()
        task = bench.task(1)
        classifier = task.model.clf_head[-1]
        assert isinstance(classifier, nn.Linear)
        with torch.no_grad():
            classifier.bias[0] = math.inf
        with pytest.raises(NonFiniteLossError) as caught:
            run_fit(task, bench.data("train"), bench.data("val"), bench.bound.run.settings.train, bench.folder(1))
        assert re.search(r"tversky: 0\.\d+, .*clf: nan", str(caught.value))


class TestValidation:
    def test_summary_over_batches_is_that_of_the_samples(self, micro: Callable[..., Bench]) -> None:
        """IoU over the samples with a lesion, accuracy over all; batches of 4 and 2."""
        bench = micro()
        task, val = bench.task(1), bench.data("val")
        summary = loop._validate(task, val, 4, Ranks())
        with torch.no_grad():
            batch = val.batch(np.arange(6))
            output = task.eval().model(batch.images)
        predicted, truth = (output.seg_logits >= 0).numpy(), batch.masks.numpy() > 0
        ious = [
            np.logical_and(p, t).sum() / np.logical_or(p, t).sum()
            for p, t in zip(predicted, truth, strict=True)
            if t.any()
        ]
        assert 0 < len(ious) < 6
        assert summary["val_iou"] == pytest.approx(np.mean(ious), rel=1e-5)
        hits = output.clf_logits.argmax(1) == batch.labels
        assert summary["val_accuracy"] == pytest.approx(hits.double().mean().item())
        for level in range(4):
            expected = output.signals.w_seg[:, level].mean().item()
            assert summary[f"val_w_seg_D{level + 1}"] == pytest.approx(expected, rel=1e-5)

    def test_progress_counts_steps_and_epochs(self, micro: Callable[..., Bench]) -> None:
        bench = micro(train={"stage2": {"epochs": 2}})
        seen: list[Progress] = []
        settings = bench.bound.run.settings.train
        trained = run_fit(bench.task(2), bench.data("train"), bench.data("val"), settings, bench.folder(2), seen.append)
        assert [(p.stage, p.epoch, p.epochs, p.step, p.steps) for p in seen] == [
            (2, epoch, 2, step, 4) for epoch in (1, 2) for step in (1, 2, 3, 4)
        ]
        assert all(p.seconds_left >= 0 for p in seen)
        assert seen[-1].seconds_left == 0
        assert [p.last for p in seen[:4]] == [None] * 4
        assert seen[4].last == trained.history[0]
        means = np.mean([p.loss for p in seen[:4]])
        assert trained.history[0]["train_loss"] == pytest.approx(means, rel=1e-5)

    def test_progress_reads_well(self) -> None:
        last = {"val_iou": 0.4567, "val_accuracy": 0.75}
        progress = Progress(1, 3, 10, 4, 20, 0.98765, 125.4, last)
        assert str(progress) == (
            "stage 1  epoch 3/10  step 4/20  loss 0.988  at most 2:05 left  last epoch: val IoU 0.457, accuracy 0.750"
        )
        assert str(progress._replace(last=None)).endswith("at most 2:05 left")

"""What each stage optimises: a module whose forward takes a batch and returns named losses."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from btinet.config import LossSettings
from btinet.losses import focal_cross_entropy, gate_loss, segmentation_losses
from btinet.metrics import foreground, overlap
from btinet.models.method import Method
from btinet.models.output import Output
from btinet.ranks import Ranks
from btinet.training.balancing import Balance, make_balance


class Batch(NamedTuple):
    images: Tensor
    """float [B, 3, S, S] in [0, 1]"""
    masks: Tensor
    """float [B, 1, S, S] in {0, 1}"""
    labels: Tensor
    """int64 [B]"""
    rows: NDArray[np.int64]
    """[B] rows of the prepared dataset"""


class Task(nn.Module):
    """Base of both stages.

    Attributes:
        stage: 1 or 2.
        trained: the modules whose parameters this stage changes; what a checkpoint holds.
        objectives: the names of the losses that are minimised together.
        monitor: validation quantity that selects the best epoch and drives the schedule.
        mode: ``max`` or ``min``: which way the monitor improves.
    """

    stage: int
    objectives: tuple[str, ...]
    monitor: str
    mode: Literal["min", "max"]

    def __init__(self, model: Method, trained: nn.Module, settings: LossSettings) -> None:
        super().__init__()
        self.model = model
        self.trained = trained
        self.settings = settings

    def losses(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Every loss term of the tasks, unweighted: seg and its three parts, and clf where the method classifies.

        A method with several supervised heads has the weighted sum of theirs.
        """
        terms: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=batch.labels.device))
        for head in output.supervised():
            if head.seg_logits is not None:
                for name, term in segmentation_losses(head.seg_logits, batch.masks, self.settings).items():
                    terms[name] = terms[name] + head.weight * term
            if head.clf_logits is not None:
                term = focal_cross_entropy(head.clf_logits, batch.labels, self.settings.focal_gamma)
                terms["clf"] = terms["clf"] + head.weight * term
        return dict(terms)

    def gate_loss(self, output: Output, batch: Batch, ranks: Ranks) -> Tensor:
        """L_gate, unweighted; NaN where the prediction is not finite.

        torch's binary cross-entropy would end the program there, on a GPU without saying why, and so is given 0.5.
        """
        assert output.clf_logits is not None and output.signals is not None
        levels = self.model.gated_levels()
        w_seg, w_clf = output.signals.w_seg[:, levels], output.signals.w_clf[:, levels]
        judged = (w_seg, w_clf, output.seg_logits, output.clf_logits)
        # over all ranks: their targets depend on one another
        is_finite = ranks.sum(torch.stack([values.sum() for values in judged]).sum()).isfinite()
        w_seg, w_clf, seg_logits, clf_logits = (torch.where(is_finite, values, 0.5) for values in judged)
        loss = gate_loss(w_seg, w_clf, seg_logits, clf_logits, batch.masks, ranks)
        return torch.where(is_finite, loss, torch.nan)

    @abstractmethod
    def balance(self) -> Balance:
        """How the losses of ``objectives`` become one."""

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over a batch, each a scalar: losses times samples, IoU over lesions, correct classes, counts."""
        output = self.model(batch.images)
        samples = len(batch.labels)
        terms = self.losses(output, batch)
        if self.model.gated_levels():
            terms["gate"] = self.gate_loss(output, batch, Ranks.alone())
        sums = {name: term * samples for name, term in terms.items()}
        lesion = batch.masks.amax((1, 2, 3)) > 0
        sums["iou"] = torch.where(lesion, overlap(foreground(output.seg_logits), batch.masks > 0).iou, 0).sum()
        if output.clf_logits is not None:
            sums["correct"] = (output.clf_logits.argmax(1) == batch.labels).sum()
        sums["lesions"] = lesion.sum()
        sums["samples"] = torch.full_like(sums["lesions"], samples)
        if output.signals is not None:
            for name in ("w_seg", "w_clf"):
                weights = getattr(output.signals, name).sum(0)
                sums |= {f"{name}_D{level + 1}": weights[level] for level in range(weights.numel())}
        return sums


class Stage1Task(Task):
    """The whole network on L_seg and, where it classifies, L_clf (App. B); the gates learn from both."""

    stage, monitor, mode = 1, "val_iou", "max"

    def __init__(self, model: Method, settings: LossSettings) -> None:
        super().__init__(model, model, settings)
        self.objectives = model.about.tasks

    def balance(self) -> Balance:
        """How the losses are weighted."""
        return make_balance(self.settings, self.objectives, self.model)

    def forward(self, batch: Batch, ranks: Ranks) -> dict[str, Tensor]:
        """Losses of a batch."""
        output = self.model(batch.images)
        terms = self.losses(output, batch)  # lambda_gate = 0 in this stage
        return terms if output.penalty is None else terms | {"penalty": output.penalty}


class Stage2Task(Task):
    """The gate networks on L_gate, everything else frozen and in evaluation mode (notes B9, T8)."""

    stage, objectives, monitor, mode = 2, ("gate",), "val_gate", "min"

    def __init__(self, model: Method, settings: LossSettings) -> None:
        super().__init__(model, model.gates(), settings)
        model.requires_grad_(False)
        model.gates().requires_grad_(True)

    def balance(self) -> Balance:
        """lambda_gate."""
        return Balance({"gate": self.settings.gate_weight})

    def train(self, mode: bool = True) -> Stage2Task:
        """Nothing that is trained here has dropout or BatchNorm, and what has them is frozen."""
        super().train(False)
        return self

    def forward(self, batch: Batch, ranks: Ranks) -> dict[str, Tensor]:
        """Losses of a batch."""
        with torch.no_grad():
            features = self.model.features(batch.images)
        return {"gate": self.gate_loss(self.model.output(features), batch, ranks)}

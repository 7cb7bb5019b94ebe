"""Batches of prepared images to predictions: the numbers of a row, and the probability map."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from btinet.calibration.distribution import image_statistics
from btinet.evaluation.mc_dropout import dropout_layers, mc_dropout
from btinet.inference.single_pass import SinglePass, numbers
from btinet.models.method import Method
from btinet.models.place import for_inference, place

MC_SCOPE = "all"


class Prepared(NamedTuple):
    """An image as the model sees it."""

    pixels: NDArray[np.uint8]
    """RGB [S, S, 3]"""
    width: int
    """Of the image itself, in pixels."""
    height: int


class Prediction(NamedTuple):
    probability: NDArray[np.float32]
    """Of lesion, [S, S]."""
    numbers: dict[str, float]
    """See :func:`btinet.inference.single_pass.numbers`; and, with Monte Carlo dropout, ``mc_*``."""
    statistics: dict[str, float]
    """See :func:`btinet.calibration.distribution.image_statistics`."""


class Predictor:
    """One forward pass an image.

    Args:
        model: trained; it is changed to predict faster.
        classes: class names.
        device: where to compute.
        mc_passes: Monte Carlo dropout passes of the decoder beside it; 0 leaves them out.
    """

    def __init__(self, model: Method, classes: tuple[str, ...], device: torch.device, mc_passes: int = 0) -> None:
        self.network = place(SinglePass(for_inference(model)), device)
        self.classes = classes
        self.device = device
        self.mc_passes = mc_passes if dropout_layers(model, MC_SCOPE) else 0

    @torch.no_grad()
    def predict(self, images: list[Prepared], seed: int = 0) -> list[Prediction]:
        """Predict a batch; ``seed`` is of its Monte Carlo dropout, and of a gate that is random."""
        torch.manual_seed(seed)
        pixels = torch.from_numpy(np.stack([image.pixels for image in images])).to(self.device)
        features = self.network.features(pixels)
        outputs = self.network.outputs(self.network.model.output(features))
        rows = numbers(outputs, self.classes)
        if self.mc_passes:
            no_truth = torch.zeros_like(outputs["mask_probability"])[:, None]
            for row, more in zip(rows, self._mc_rows(features, no_truth), strict=True):
                row |= more
        maps = outputs["mask_probability"].cpu().numpy()
        statistics = [image_statistics(*image) for image in images]
        return [Prediction(*values) for values in zip(maps, rows, statistics, strict=True)]

    def _mc_rows(self, features: list[Tensor], truth: Tensor) -> list[dict[str, float]]:
        """``mc_seg_*`` and, where the method classifies, ``mc_clf_*`` and ``mc_p_<class>``."""
        mc = mc_dropout(self.network.model, features, truth, self.mc_passes, MC_SCOPE)
        names = ("seg_var", "seg_entropy", "seg_mi", "clf_entropy", "clf_mi", "clf_var")
        columns = {f"mc_{name}": values for name in names if (values := getattr(mc, name)) is not None}
        if mc.probs is not None:
            columns |= {f"mc_p_{name}": mc.probs[:, index] for index, name in enumerate(self.classes)}
        lists = [values.tolist() for values in columns.values()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]

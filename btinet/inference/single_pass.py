"""One forward pass, uint8 images in, everything a prediction consists of out.

Predicting, calibrating and the ONNX file all go through :class:`SinglePass`, so that what is calibrated and what is
exported is what predicts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from btinet.evaluation.schema import LEVELS
from btinet.metrics import mask_confidence
from btinet.models.method import Method
from btinet.models.output import Output, Signals

SIGNAL_NAMES = Signals._fields


class SinglePass(nn.Module):
    """A model in evaluation mode, from prepared pixels to named outputs."""

    def __init__(self, model: Method) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """RGB images uint8 [B, S, S, 3] -> see :meth:`outputs`."""
        return self.outputs(self.model.output(self.features(images)))

    def features(self, images: Tensor) -> list[Tensor]:
        """RGB images uint8 [B, S, S, 3] -> the model's features."""
        return self.model.features(images.permute(0, 3, 1, 2).float() / 255)

    def outputs(self, output: Output) -> dict[str, Tensor]:
        """Named outputs of a forward pass.

        ``mask_probability`` [B, S, S]; ``mask_confidence`` [B]; where the method classifies ``class_probability``
        [B, K]; where it has gates each of its signals [B, 4], levels D1..D4.
        """
        p = output.seg_logits[:, 0].sigmoid()
        named = {"mask_probability": p, "mask_confidence": mask_confidence(p)}
        if output.clf_logits is not None:
            named["class_probability"] = output.clf_logits.softmax(1)
        return named | (output.signals._asdict() if output.signals is not None else {})


def numbers(outputs: dict[str, Tensor], classes: tuple[str, ...]) -> list[dict[str, float]]:
    """The outputs but for the map, a flat row of floats a sample.

    ``mask_confidence``; ``confidence`` (the largest class probability), ``entropy`` (nats) and ``p_<class>``;
    ``<signal>_D1``... and ``delta_D1``... (w_clf - w_seg).
    """
    columns: dict[str, Tensor] = {"mask_confidence": outputs["mask_confidence"]}
    if (probabilities := outputs.get("class_probability")) is not None:
        columns["confidence"] = probabilities.amax(1)
        columns["entropy"] = torch.special.entr(probabilities).sum(1)
        columns |= {f"p_{name}": probabilities[:, index] for index, name in enumerate(classes)}
    signals = {name: values for name, values in outputs.items() if name in SIGNAL_NAMES}
    if signals:
        signals["delta"] = signals["w_clf"] - signals["w_seg"]
    for name, values in signals.items():
        columns |= {f"{name}_{level}": values[:, index] for index, level in enumerate(LEVELS)}
    lists = {name: values.tolist() for name, values in columns.items()}
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]

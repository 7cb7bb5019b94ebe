"""A model as one ONNX file: prepared pixels in, every output of the single pass out."""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stderr
from pathlib import Path

import torch

from btinet.errors import InputError
from btinet.inference.single_pass import SinglePass
from btinet.models.method import Method

OPSET = 18


def check_onnx() -> None:
    """Fail with an InputError where the onnx packages are not installed."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError("--onnx needs onnx and onnxscript: pip install 'btinet[onnx]'") from error


def write_onnx(model: Method, size: int, file: Path) -> None:
    """Export ``images`` uint8 [B, S, S, 3], B of any size, to the named outputs of :class:`SinglePass`, in float32.

    Raises:
        InputError: what the model computes cannot be written down for all images and any B.
    """
    model = copy.copy(model)
    model.precision = "float32"
    network = SinglePass(model)
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with torch.no_grad():
        names = list(network(example))
    batch = torch.export.Dim("batch", min=1)
    try:
        # torch.onnx by itself would go on with a batch that is fixed
        with redirect_stderr(io.StringIO()):  # where it fails it prints all that it has seen
            program = torch.export.export(network, (example,), dynamic_shapes={"images": {0: batch}})
        torch.onnx.export(
            program,
            f=str(file),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=names,
            verbose=False,
        )
    except RuntimeError as error:
        raise InputError(
            f"{model.about.title} cannot be exported to ONNX, which cannot say all that it computes, or not for any "
            "number of images: leave out --onnx"
        ) from error

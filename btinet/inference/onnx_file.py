"""A model as one ONNX file: prepared pixels in, every output of the single pass out."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from btinet.errors import InputError
from btinet.inference.single_pass import SinglePass
from btinet.models.method import Method

OPSET = 18


def write_onnx(model: Method, size: int, file: Path) -> None:
    """Export ``images`` uint8 [B, S, S, 3], B of any size, to the named outputs of :class:`SinglePass`, in float32.

    Raises:
        InputError: the onnx packages are not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError("--onnx needs onnx and onnxscript: pip install 'btinet[onnx]'") from error
    model = copy.copy(model)
    model.precision = "float32"
    network = SinglePass(model)
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with torch.no_grad():
        names = list(network(example))
    torch.onnx.export(
        network,
        (example,),
        str(file),
        dynamo=True,
        external_data=False,
        opset_version=OPSET,
        input_names=["images"],
        output_names=names,
        dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
        verbose=False,
    )

"""Let torchvision be imported beside a torch that its compiled operators were not built for.

The registry's torchvision is a CUDA build; beside a CPU torch its C++ library does not load and
``import torchvision`` (hence timm, torchmetrics) ends in ``operator torchvision::nms does not exist``. Importing this
module first declares the two missing operators, which is all that the import needs. Where torchvision is healthy it
does nothing. ``torchvision.ops.nms`` and ``torchvision.io`` stay unusable; nothing here uses them.
"""

from __future__ import annotations

import sys

import torch

_operators: torch.library.Library | None = None  # the declarations live as long as this object

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _operators = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        _operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

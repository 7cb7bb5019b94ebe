"""What runs on the cluster.

Imports are inside the functions: Ray's controller process loads this module only to pass the functions on, and
would spend seconds on torch and timm for nothing.
"""

from __future__ import annotations

from typing import Any


def train_worker(config: dict[str, Any]) -> None:
    """Train a stage; runs in every training worker.

    What a repetition cannot mend is left as ``failure.json`` rather than raised, or Ray would try again.
    """
    import ray.train.torch

    from btinet.config import BoundRun
    from btinet.errors import InputError
    from btinet.storage import Storage
    from btinet.training.loop import NonFiniteLossError
    from btinet.training.stage import stage_folder, train_stage

    bound = BoundRun.model_validate(config["bound"])
    root = Storage(**config["storage"])
    try:
        train_stage(bound, config["stage"], root, ray.train.torch.get_device())
    except (InputError, NonFiniteLossError) as error:
        (stage_folder(root, bound.run_id, config["stage"]) / "failure.json").write_json({"message": str(error)})


def evaluate_worker(bound: dict[str, Any], storage: dict[str, Any]) -> dict[str, Any]:
    """Evaluate a run; returns its receipt."""
    import ray
    import torch

    from btinet.config import BoundRun
    from btinet.evaluation.evaluate import evaluate
    from btinet.storage import Storage

    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    return evaluate(BoundRun.model_validate(bound), Storage(**storage), device).model_dump()

"""What runs on the cluster.

Imports are inside the functions: Ray's controller process loads this module only to pass the functions on, and
would spend seconds on torch and timm for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from btinet.inference.images import BadImage, Source
    from btinet.inference.package import Package
    from btinet.inference.predict import Options, Row
    from btinet.storage import Storage


def run_worker(config: dict[str, Any]) -> None:
    """Do steps of a run, one after the other; runs in every worker of a Ray Train run."""
    import ray.train.torch
    import torch

    from btinet.cluster.metrics import TrainingMetrics
    from btinet.config import BoundRun
    from btinet.evaluation.evaluate import evaluate
    from btinet.progress import read_failure
    from btinet.ranks import Ranks
    from btinet.status import EVALUATION, failure_file, stage_of
    from btinet.storage import Storage
    from btinet.training.stage import train_stage

    bound, root = BoundRun.model_validate(config["bound"]), Storage(**config["storage"])
    device, metrics = ray.train.torch.get_device(), TrainingMetrics(bound.run)
    failure = read_failure(failure_file(root, bound.run_id))
    has_failed = failure is not None and failure.is_final
    if Ranks().sum(torch.tensor(float(has_failed), device=device)):
        return  # one of several workers raised it, and Ray has started all of them again
    for step in config["steps"]:
        with leaving_failure(root, bound.run_id, step):
            if step == EVALUATION:
                evaluate(bound, root, device)
            else:
                train_stage(bound, stage_of(step), root, device, metrics.update)
            continue
        return  # the failure has been left, and the next step needs this one


def predict_worker(
    package: list[Any], sources: list[Source], target: Storage, options: Options, first_batch: int, probe: Storage
) -> list[Row | BadImage]:
    """Predict a shard of images.

    Args:
        package: Ray's reference to the package, in a list so that Ray does not fetch it for every shard.
        probe: a file that is there if this node shares the folder that results go to.
    """
    import socket

    import ray
    import torch

    from btinet.errors import InputError
    from btinet.inference.predict import predict_rows

    if not probe.exists():
        raise InputError(
            f"--out {target}: on {socket.gethostname()} that is another folder than here: name a disk that all nodes "
            "share or an s3:// URL, or predict with --in-process"
        )
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    return list(predict_rows(_fetched(package[0]), sources, target, device, options, first_batch))


@lru_cache(maxsize=1)
def _fetched(package: Any) -> Package:
    """Once in a process, which predicts many shards."""
    import ray

    found: Package = ray.get(package)
    return found


@contextmanager
def leaving_failure(root: Storage, run_id: str, step: str) -> Iterator[None]:
    """Leave an error of the block as the run's ``failure.json``; it is gone when the block ends well.

    What a repetition cannot mend goes no further, or Ray would try again; whoever waits for the step finds the file.
    One of several workers raises it, or the others would wait for it: Ray starts all again, and each ends at once.
    """
    import socket

    from btinet.errors import InputError, NonFiniteLossError
    from btinet.progress import write_failure
    from btinet.ranks import Ranks
    from btinet.status import failure_file
    from btinet.storage import NO_ROOM, is_full, refused

    file = failure_file(root, run_id)
    try:
        yield
    except (InputError, NonFiniteLossError) as error:
        write_failure(file, step, str(error), is_final=True)
        if Ranks().size > 1:
            raise
    except PermissionError as error:  # it then takes no failure.json either
        raise RuntimeError(f"on {socket.gethostname()}: {refused(error)}") from error
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and is_full(error):
            message += f"; {NO_ROOM}"
        write_failure(file, step, message, is_final=False)
        raise
    else:
        file.remove()

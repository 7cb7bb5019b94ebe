"""The processes that train one run together, and the few reductions that make them count as one.

In a single process every reduction is the identity. With several, BatchNorm statistics, dropout masks, the gate
targets' extremes and means over a varying number of samples are those of the global batch, so that the numbers are
those of one process with the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

import btinet.torchvision_compat  # noqa: F401  isort: skip  (must come before timm)
from timm.layers import BatchNormAct2d, DropPath


class Ranks:
    """This process's place among its peers (torch.distributed's, where it is initialised)."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0

    @classmethod
    def alone(cls) -> Ranks:
        """A single process, whatever its peers: for work that is split by batch rather than by sample."""
        ranks = cls()
        ranks.size, ranks.rank = 1, 0
        return ranks

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, element by element; carries no gradient."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def min_max(self, values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest of those of a vector that are counted (bool); (inf, -inf) where none is, on any rank."""
        extremes = torch.where(counted, torch.stack([-values, values]), -torch.inf).amax(1)
        if self.size > 1:
            dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        return -extremes[0], extremes[1]

    def gather(self, values: list[str]) -> list[str]:
        """The values of all ranks, in the order of the ranks."""
        if self.size == 1:
            return values
        gathered: list[list[str]] = [[] for _ in range(self.size)]
        dist.all_gather_object(gathered, values)
        return [value for part in gathered for value in part]

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()


def synchronise_batchnorm(model: nn.Module) -> None:
    """Let every BatchNorm of ``model`` take its training statistics over all ranks, on CPU and GPU alike.

    torch's own SyncBatchNorm runs on GPUs only. Parameters, buffers and their names stay as they are.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.forward = partial(_global_batchnorm, module, module.forward)  # type: ignore[method-assign]


def synchronise_dropout(model: nn.Module) -> None:
    """Let every dropout and stochastic depth of ``model`` draw its mask for the global batch, and use this rank's rows.

    The ranks' random generators must agree; then they draw what one process with the whole batch would.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd | DropPath):
            module.forward = partial(_global_dropout, module, module.forward)  # type: ignore[method-assign]


def own_draws(draw: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What ``draw`` gives the samples x [B, ...], this rank's share of the global batch, where it draws for all of it.

    Args:
        draw: [N, ...] -> [N, ...], from torch's global generator.
        x: as many samples as on every other rank.
    """
    ranks = Ranks()
    return draw(torch.cat([x] * ranks.size))[ranks.rank * len(x) :][: len(x)]


def _global_dropout(module: nn.Module, plain_forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Dropout of x [B, ...]: all dropouts multiply by a mask without looking."""
    if not module.training:
        return plain_forward(x)
    return x * own_draws(plain_forward, torch.ones_like(x))  # a mask in the memory format of x


def _global_batchnorm(module: _BatchNorm, plain_forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """BatchNorm of x [B, C, ...] with mean and variance over the batches of all ranks.

    Of bfloat16, too, it is taken in float32, as torch's own.
    """
    if not module.training:
        return plain_forward(x)
    precision, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
    others = [0, *range(2, x.ndim)]
    shape = [1, -1] + [1] * (x.ndim - 2)
    count = x.numel() // x.shape[1] * dist.get_world_size()
    mean = all_reduce(x.sum(others)) / count
    centred = x - mean.view(shape)
    variance = all_reduce(centred.square().sum(others)) / count
    assert module.running_mean is not None and module.running_var is not None and module.momentum is not None
    assert module.num_batches_tracked is not None
    with torch.no_grad():
        module.num_batches_tracked += 1
        module.running_mean.lerp_(mean, module.momentum)
        module.running_var.lerp_(variance * count / (count - 1), module.momentum)
    y = centred * torch.rsqrt(variance + module.eps).view(shape) * module.weight.view(shape) + module.bias.view(shape)
    y = y.to(precision)
    # timm fuses dropout and the activation into its BatchNorm
    return module.act(module.drop(y)) if isinstance(module, BatchNormAct2d) else y

"""Sums over processes that gradients pass through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    """Number of processes that train together; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        total = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of ``x`` over all processes, the same on each; ``x`` itself where there is one.

    The gradient is summed over processes too, so every process must call backward. If each takes the loss of the whole
    batch from such sums, the gradient of an input is the true one times the number of processes, and averaging the
    parameters' gradients, as DistributedDataParallel does, makes it the true one.
    """
    if world_size() == 1:
        return x
    result: Tensor = _AllReduceSum.apply(x)  # type: ignore[no-untyped-call]
    return result

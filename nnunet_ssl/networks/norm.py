"""Batch normalisation of vectors over all processes, on any device (torch's own synchronised one refuses the CPU)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_ssl.collectives import all_reduce_sum, world_size


class AllReduceBatchNorm1d(nn.Module):
    """Batch norm on (M, C) whose moments are those of the rows of all processes together; M may differ between them.

    State-dict names, running statistics and results in one process are ``nn.BatchNorm1d``'s. It is none of torch's
    batch norms, so that converting a network to synchronised ones leaves it alone. One row, or none, is allowed: how
    many points two views share is random, and must not end a training.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        """
        :param num_features: C
        :param eps: added to the variance
        :param momentum: weight of the newest batch in the running statistics
        """
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"

    def forward(self, x: Tensor) -> Tensor:
        """(M, C) -> (M, C), in x's type

        :raises ValueError: x is not (M, C)
        """
        if x.ndim != 2 or x.shape[1] != self.num_features:
            raise ValueError(f"expected vectors (M, {self.num_features}), found the shape {tuple(x.shape)}")
        if not self.training:
            return self._torch(x)
        if world_size() == 1 and len(x) > 1:
            self.num_batches_tracked += 1
            return self._torch(x)
        return self._over_processes(x)

    def _torch(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )

    def _over_processes(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        sums = all_reduce_sum(torch.cat([wide.sum(0), wide.new_tensor([len(x)])]))  # (C + 1,)
        count = sums[-1].detach()
        mean = sums[:-1] / count.clamp_min(1)
        centred = wide - mean
        # a second sum, of centred values: E[x^2] - E[x]^2 would lose the variance beside a large mean
        var = all_reduce_sum(centred.square().sum(0)) / count.clamp_min(1)
        self._update_running(mean.detach(), var.detach(), count)
        return (centred * torch.rsqrt(var + self.eps) * self.weight + self.bias).to(x.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        if count < 2:  # no variance to learn from
            return
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), self.momentum)

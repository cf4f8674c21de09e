"""Weighted sums of voxels: what interpolation is made of, with one gradient map instead of one a corner.

Letters: B images, C channels, *S grid, V voxels of it, N points, K voxels a point.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def blend(level: Tensor, voxels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sums over k of ``weights[..., k]`` times the vector at voxel ``voxels[..., k]``: (B, N, C), in the level's type.

    Sums are in float32 at least, forwards and, where several points share a voxel, backwards. The gradient reaches the
    level alone.

    :param level: (B, C, *S)
    :param voxels: (B, N, K) integers: numbers of voxels in the flattened grid
    :param weights: (B, N, K); None: one, for K = 1
    """
    blended: Tensor = _Blend.apply(level.flatten(2), voxels, weights)  # type: ignore[no-untyped-call]
    return blended.transpose(1, 2)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, voxels: Tensor, weights: Tensor | None) -> Tensor:
        ctx.save_for_backward(voxels, weights)
        ctx.shape, ctx.dtype = flat.shape, flat.dtype
        channels = flat.shape[1]
        if weights is None:
            return flat.gather(2, _everywhere(voxels, 0, channels))
        wide = torch.promote_types(flat.dtype, torch.float32)
        total = torch.zeros(*flat.shape[:2], voxels.shape[1], dtype=wide, device=flat.device)
        for k in _corners(weights):  # not all at once: the vectors of a batch are large
            total.addcmul_(flat.gather(2, _everywhere(voxels, k, channels)).to(wide), weights[:, None, :, k].to(wide))
        return total.to(flat.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        voxels, weights = ctx.saved_tensors
        channels, size = ctx.shape[1:]
        crowded = voxels[0].numel() > size  # many points to a voxel of a coarse level: half precision would lose some
        wide = torch.promote_types(ctx.dtype, torch.float32)
        total = gradient.new_zeros(ctx.shape, dtype=wide if crowded else ctx.dtype)
        for k in [0] if weights is None else _corners(weights):
            part = gradient if weights is None else gradient.to(wide) * weights[:, None, :, k].to(wide)
            total.scatter_add_(2, _everywhere(voxels, k, channels), part.to(total.dtype))
        return total.to(ctx.dtype), None, None


def _everywhere(voxels: Tensor, k: int, channels: int) -> Tensor:
    """(B, C, N) without a copy."""
    return voxels[:, None, :, k].expand(-1, channels, -1)


def _corners(weights: Tensor) -> list[int]:
    """Corners that count (points on voxels have one); all of them on a GPU, which would have to be waited for."""
    every = range(weights.shape[-1])
    return list(every) if weights.device.type != "cpu" else [k for k in every if bool(weights[..., k].any())]

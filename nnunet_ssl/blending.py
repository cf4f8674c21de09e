"""Weighted sums of voxels: what interpolation is made of, with one gradient map instead of one a corner.

Letters: B images, C channels, *S grid, V voxels of it, N points, K voxels a point.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        ctx.last = flat.stride(1) == 1 and flat.transpose(1, 2).is_contiguous()  # channels last
        if weights is None:
            return _take(flat, voxels[..., 0], ctx.last)
        wide = torch.promote_types(flat.dtype, torch.float32)
        total = torch.zeros(*flat.shape[:2], voxels.shape[1], dtype=wide, device=flat.device)
        for k in _corners(weights):  # not all at once: the vectors of a batch are large
            total.addcmul_(_take(flat, voxels[..., k], ctx.last).to(wide), weights[:, None, :, k].to(wide))
        return total.to(flat.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        voxels, weights = ctx.saved_tensors
        images, channels, size = ctx.shape
        crowded = voxels[0].numel() > size  # many points to a voxel of a coarse level: half precision would lose some
        wide = torch.promote_types(ctx.dtype, torch.float32)
        shape = (images, size, channels) if ctx.last else ctx.shape
        total = gradient.new_zeros(shape, dtype=wide if crowded else ctx.dtype)
        total = total.transpose(1, 2) if ctx.last else total  # the level's own layout: the layers before it want that
        for k in [0] if weights is None else _corners(weights):
            part = gradient if weights is None else gradient.to(wide) * weights[:, None, :, k].to(wide)
            _add(total, voxels[..., k], part.to(total.dtype), ctx.last)
        return total.to(ctx.dtype), None, None


def ravel(voxels: Tensor, size: Sequence[int]) -> Tensor:
    """Integer voxels (..., D) inside a grid of D sizes -> their numbers (...) in the flattened grid."""
    flat = torch.zeros_like(voxels[..., 0])
    for axis, n in enumerate(size):
        flat = flat * n + voxels[..., axis]
    return flat


def _take(flat: Tensor, voxels: Tensor, last: bool) -> Tensor:
    """(B, C, V) at voxels (B, N) -> (B, C, N); last: the channels of a voxel lie together and are taken as a row."""
    if not last:
        return flat.gather(2, voxels[:, None].expand(-1, flat.shape[1], -1))
    rows = flat.transpose(1, 2).reshape(-1, flat.shape[1])
    return rows.index_select(0, _rows(voxels, flat.shape[2])).view(*voxels.shape, -1).transpose(1, 2)


def _add(total: Tensor, voxels: Tensor, part: Tensor, last: bool) -> None:
    """Add part (B, C, N) to total (B, C, V) at voxels (B, N), in place."""
    if not last:
        total.scatter_add_(2, voxels[:, None].expand(-1, total.shape[1], -1), part)
        return
    channels = total.shape[1]
    rows = total.transpose(1, 2).view(-1, channels)
    rows.scatter_add_(0, _rows(voxels, total.shape[2])[:, None].expand(-1, channels),
                      part.transpose(1, 2).reshape(-1, channels))  # fmt: skip


def _rows(voxels: Tensor, size: int) -> Tensor:
    """Numbers of voxels within their images (B, N) -> within the whole batch (B N)."""
    return (voxels + size * torch.arange(len(voxels), device=voxels.device)[:, None]).flatten()


def _corners(weights: Tensor) -> list[int]:
    """Corners that count (points on voxels have one); all of them on a GPU, which would have to be waited for."""
    every = range(weights.shape[-1])
    return list(every) if weights.device.type != "cpu" else [k for k in every if bool(weights[..., k].any())]

"""Feature pyramids read at points: levels and voxel coordinates in, voxel vectors out.

Shapes: B images, D axes (2 or 3), N points an image, L levels with C_l channels on a grid of size S_l. Levels come
finest first. S_l is S_0 divided by ``strides[l]`` (one cumulative integer an axis), rounded up. Coordinates are in
voxels of the finest level, in the order of the array axes (z, y, x), with voxel centres at integers; so voxel k of a
level with stride s spans [k s - 0.5, (k + 1) s - 0.5).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_ssl.blending import blend, ravel

Change = Callable[[Tensor], Tensor]
Places = tuple[Tensor, Tensor | None]  # numbers of voxels in the flattened grid, and their weights (None: one)


def gather(
    levels: Sequence[Tensor],
    strides: Sequence[Sequence[int]],
    coords: Tensor,
    mode: str = "nearest",
    outside: str = "border",
    changes: Sequence[Change | None] | None = None,
) -> Tensor:
    """Voxel vectors: the features of every level at each point, finest level first (vox2vec, Section 2).

    :param levels: L tensors (B, C_l, *S_l), finest first
    :param strides: L sequences of D integers, cumulative, finest first
    :param coords: (B, N, D) voxels of the finest level
    :param mode: "nearest" (the published reading: the voxel that contains the point) or "linear"
    :param outside: what a point outside of a level finds: the value at its "border", or (linear alone) "zeros", reached
        linearly within one voxel
    :param changes: for each level None, or a function of vectors (B, P, C_l) -> (B, P, W_l) that makes, voxel by
        voxel, what is read; reading few points so costs less than changing the whole level
    :return: (B, N, sum of C_l, or W_l) in the levels' type
    :raises ValueError: unknown mode, or levels, strides and coordinates that do not fit each other
    """
    _check(levels, strides, coords, mode, outside)
    # half precision cannot tell voxels apart beyond 2048
    coords = coords.detach().to(torch.promote_types(coords.dtype, torch.float32))
    parts = []
    for level, stride, change in zip(levels, strides, changes or [None] * len(levels), strict=True):
        where = _nearest(level, coords, stride) if mode == "nearest" else _linear(level, coords, stride, outside)
        parts.append(_read(level, *where, change))
    return torch.cat(parts, -1)


def _check(levels: Sequence[Tensor], strides: Sequence[Sequence[int]], coords: Tensor, mode: str, outside: str) -> None:
    if mode not in ("nearest", "linear"):
        raise ValueError(f"mode is {mode!r}, expected 'nearest' or 'linear'")
    if outside not in ("border", "zeros") or (outside == "zeros" and mode == "nearest"):
        raise ValueError(f"outside is {outside!r} with mode {mode!r}, expected 'border', or 'zeros' with 'linear'")
    if len(levels) != len(strides):
        raise ValueError(f"{len(levels)} levels came with {len(strides)} strides, expected one a level")
    ndim = coords.shape[-1]
    fits = all(level.ndim == ndim + 2 and len(s) == ndim for level, s in zip(levels, strides, strict=True))
    if coords.ndim != 3 or not fits:
        shapes = [tuple(level.shape) for level in levels]
        raise ValueError(f"coords {tuple(coords.shape)} do not fit levels {shapes} with strides {list(strides)}")


def _last_voxel(level: Tensor) -> Tensor:
    return torch.tensor(level.shape[2:], device=level.device) - 1


def _nearest(level: Tensor, coords: Tensor, stride: Sequence[int]) -> Places:
    """(B, N, 1) number of the voxel of a level that contains each point."""
    index = torch.floor((coords + 0.5) / coords.new_tensor(stride)).long()
    return ravel(index.clamp_min(0).minimum(_last_voxel(level)), level.shape[2:])[..., None], None


def _linear(level: Tensor, coords: Tensor, stride: Sequence[int], outside: str) -> Places:
    """(B, N, 2^D) numbers of the voxels around each point, and their weights."""
    zeros = outside == "zeros"
    last = _last_voxel(level)
    position = (coords + 0.5) / coords.new_tensor(stride) - 0.5
    if zeros:  # within reach, so that a voxel's number stays one; there every corner is outside
        position = position.clamp_min(-1).minimum(last.to(position.dtype) + 1)
    else:
        position = position.clamp_min(0).minimum(last.to(position.dtype))
    low = position.floor().long()
    weight_high = position - low  # (B, N, D)
    voxels, weights = [], []
    for corner in itertools.product((0, 1), repeat=coords.shape[-1]):
        high = torch.tensor(corner, device=coords.device, dtype=torch.bool)
        weight = torch.where(high, weight_high, 1 - weight_high).prod(-1)
        voxel = low + high.long()
        inside = torch.minimum(voxel, last).clamp_min(0)
        voxels.append(ravel(inside, level.shape[2:]))
        weights.append(weight * (voxel == inside).all(-1) if zeros else weight)
    return torch.stack(voxels, -1), torch.stack(weights, -1)


def _read(level: Tensor, voxels: Tensor, weights: Tensor | None, change: Change | None) -> Tensor:
    """(B, N, C) of a level at the points of ``_nearest`` or ``_linear``; a change is made before interpolating."""
    if change is None:
        return blend(level, voxels, weights)
    changed = change(blend(level, voxels.flatten(1)[..., None]))  # (B, N K, W)
    if weights is None:
        return changed
    total: Tensor = (changed.view(*weights.shape, -1) * weights[..., None]).sum(-2)  # (B, N, W)
    return total.to(changed.dtype)


def upsample_nearest(x: Tensor, ratio: int | Sequence[int], size: Sequence[int]) -> Tensor:
    """Repeat every voxel ``ratio`` times along each axis and crop: voxel i of the result is voxel ``i // ratio`` of x.

    Interpolating to ``size`` differs where ``size`` is not a multiple of ``ratio``: it would stretch the coarse grid.

    :param x: (B, C, *S)
    :param ratio: one integer an axis, or one for all
    :param size: D integers, at most S times ratio
    :return: (B, C, *size)
    :raises ValueError: ``size`` is larger than the repeated grid
    """
    ndim = x.ndim - 2
    ratios = [ratio] * ndim if isinstance(ratio, int) else [int(r) for r in ratio]
    fits = len(ratios) == ndim == len(size)
    if not fits or any(n > s * r for n, s, r in zip(size, x.shape[2:], ratios, strict=True)):
        raise ValueError(f"a grid {tuple(x.shape[2:])} repeated by {ratios} does not cover {tuple(size)}")
    if any(r > 1 for r in ratios):
        x = F.interpolate(x, scale_factor=[float(r) for r in ratios], mode="nearest-exact")
    for axis, n in enumerate(size, start=2):
        x = x.narrow(axis, 0, n)
    return x


class LevelWidths(nn.Module):
    """Project every level of a voxel vector to the same width, so that no level dominates it (Kats et al., ISBI 2024).

    In the native vector 512 of 1,008 entries come from the coarsest level of vox2vec's network.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        """
        :param channels: channels of each level, finest first
        :param width: width of each level in the result
        """
        super().__init__()
        self.channels = [int(c) for c in channels]
        self.layers = nn.ModuleList(nn.Linear(c, width) for c in self.channels)

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., sum of channels) -> (..., L * width)"""
        parts = torch.split(vectors, self.channels, -1)
        return torch.cat([layer(part) for layer, part in zip(self.layers, parts, strict=True)], -1)

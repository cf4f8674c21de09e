"""Batched reading of volumes at mapped voxel positions, in torch. Frame: see ``nnunet_ssl.geometry``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mirror(x: Tensor, flags: Tensor) -> Tensor:
    """Mirror each sample along its own axes, exactly: x (B, C, *S), flags (B, D) bool -> (B, C, *S)."""
    for axis in range(flags.shape[1]):
        own = flags[:, axis].view(-1, *[1] * (x.ndim - 1))
        x = torch.where(own, x.flip(axis + 2), x)
    return x


def positions(matrices: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, *shape, D) where the voxels of a grid land: matrices (B, D+1, D+1) map its voxels to another grid.

    Sums instead of a matrix product: autocast and TF32 would round that to a thousandth of a volume.
    """
    ndim = len(shape)
    out = matrices[:, None, :ndim, ndim]  # (B, 1, D)
    out = out.reshape(len(matrices), *[1] * ndim, ndim)
    for axis, size in enumerate(shape):
        index = torch.arange(size, device=matrices.device, dtype=matrices.dtype)
        index = index.view(*[-1 if i == axis else 1 for i in range(ndim)], 1)  # (.., size, .., 1)
        out = out + index * matrices[:, :ndim, axis].reshape(len(matrices), *[1] * ndim, ndim)
    return out


def warp(volume: Tensor, matrices: Tensor, shape: Sequence[int], mode: str = "linear") -> Tensor:
    """Read volumes at the voxels of another grid.

    volume (B, C, *S) float; matrices (B, D+1, D+1) map voxels of the result to voxels of the volume -> (B, C, *shape).
    mode: linear or nearest. Outside the volume is zero, reached linearly within one voxel of its border.
    Raises ValueError for another mode.
    """
    return read(volume, positions(matrices.to(volume.dtype), shape), mode)


def move(matrices: Tensor, points: Tensor, shift: bool = True) -> Tensor:
    """Map points (B, ..., D) by matrices (B, D+1, D+1), without their translation where `shift` is false.

    In sums, for the reason that ``positions`` has.
    """
    ndim = points.shape[-1]
    wide = matrices.view(len(matrices), *[1] * (points.ndim - 2), ndim + 1, ndim + 1)
    out = (wide[..., :ndim, :ndim] * points.unsqueeze(-2)).sum(-1)
    return out + wide[..., :ndim, ndim] if shift else out


def read(volume: Tensor, places: Tensor, mode: str = "linear") -> Tensor:
    """Read volumes (B, C, *S) at places (B, *shape, D), in their voxels -> (B, C, *shape); see ``warp``."""
    if mode not in ("linear", "nearest"):
        raise ValueError(f"mode is {mode!r}; expected 'linear' or 'nearest'")
    ndim = places.shape[-1]
    size = torch.tensor(volume.shape[2:], dtype=volume.dtype)
    places = (places * (2.0 / size).to(volume.device)) + (1.0 / size - 1.0).to(volume.device)  # -1, 1: outer faces
    grid = places[..., list(reversed(range(ndim)))]  # grid_sample wants x first
    return F.grid_sample(
        volume, grid, mode="bilinear" if mode == "linear" else "nearest", padding_mode="zeros", align_corners=False
    )

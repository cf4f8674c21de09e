"""Smooth random deformations of a grid: cubic B-splines on a coarse lattice, too weak to fold.

Frame: see ``nnunet_ssl.geometry``. The lattice of an axis has its knots `spacing` voxels apart, the first one a spacing
before voxel 0, so that every voxel has its four.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A free-form deformation is one-to-one while no control point moves by more than this part of the spacing between them
# (Choi and Lee, Injectivity conditions of 2D and 3D uniform cubic B-spline functions, Graphical Models 62, 2000).
LARGEST_MOVE = {2: 1 / 2.046392675, 3: 1 / 2.479472335}


def lattice_shape(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    """Control points per axis for a grid of `shape` voxels, their distance in voxels given per axis."""
    return tuple(int((size - 1) // step) + 4 for size, step in zip(shape, spacing, strict=True))


def basis(places: Tensor, step: float, points: int) -> Tensor:
    """(M, points) float64: weight of every control point of an axis at each of M places (voxels); rows sum to 1."""
    scaled = places.to(torch.float64) / step
    first = scaled.floor().long()
    t = scaled - first
    weights = torch.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    out = torch.zeros(len(places), points, dtype=torch.float64)
    return out.scatter_(1, first[:, None] + torch.arange(4), weights)


def displacement(control: Tensor, axes: Sequence[Tensor], spacing: Sequence[float]) -> Tensor:
    """Moves, in voxels, of the places of a product grid.

    control (B, D, *lattice): moves of the control points; axes: D tensors (M_i,) of places in voxels, all inside the
    grid that the lattice was made for -> (B, M_1, ..., M_D, D).
    """
    field = control
    for axis, (places, step) in enumerate(zip(axes, spacing, strict=True), start=2):
        weights = basis(places.cpu(), step, control.shape[axis]).to(control)  # (M_i, lattice_i)
        field = (field.movedim(axis, -1).unsqueeze(-2) * weights).sum(-1).movedim(-1, axis)  # in sums: no TF32
    return field.movedim(1, -1)

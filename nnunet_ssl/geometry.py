"""Maps between voxel grids.

Frame: points are (z, y, x) (2D: (y, x)), in voxels, and a voxel's centre is at its integer index; a grid of shape S
covers the centres 0 ... S - 1. A map is a homogeneous (D+1, D+1) float64 matrix that acts on column vectors (p, 1):
``compose(f, g)`` is f after g. All maps go from voxels to voxels; millimetres appear only inside ``rotation_scale``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


def identity(ndim: int) -> Matrix:
    """The map that changes nothing: (D+1, D+1)."""
    return np.eye(ndim + 1, dtype=np.float64)


def translation(offset: ArrayLike) -> Matrix:
    """p -> p + offset (voxels)."""
    offset = np.asarray(offset, dtype=np.float64)
    matrix = identity(len(offset))
    matrix[:-1, -1] = offset
    return matrix


def linear(matrix: ArrayLike, centre: ArrayLike) -> Matrix:
    """p -> centre + matrix (p - centre), for a (D, D) matrix and a centre in voxels."""
    matrix, centre = np.asarray(matrix, dtype=np.float64), np.asarray(centre, dtype=np.float64)
    out = identity(len(centre))
    out[:-1, :-1] = matrix
    out[:-1, -1] = centre - matrix @ centre
    return out


def flip(shape: Sequence[int], axes: Sequence[int]) -> Matrix:
    """Mirror a grid of this shape along `axes`: p_i -> S_i - 1 - p_i. Its own inverse, exact on integers."""
    matrix = identity(len(shape))
    for axis in axes:
        matrix[axis, axis], matrix[axis, -1] = -1.0, shape[axis] - 1.0
    return matrix


def compose(*maps: Matrix) -> Matrix:
    """compose(f, g, h)(p) = f(g(h(p)))."""
    out = maps[0]
    for matrix in maps[1:]:
        out = out @ matrix
    return out


def invert(matrix: Matrix) -> Matrix:
    """The inverse map. Raises numpy.linalg.LinAlgError for a singular one."""
    inverse = identity(len(matrix) - 1)
    inverse[:-1, :-1] = np.linalg.inv(matrix[:-1, :-1])
    inverse[:-1, -1] = -inverse[:-1, :-1] @ matrix[:-1, -1]
    return inverse


def apply(matrix: Matrix, points: ArrayLike) -> NDArray[np.float64]:
    """Map points (..., D) -> (..., D)."""
    mapped: NDArray[np.float64] = np.asarray(points, dtype=np.float64) @ matrix[:-1, :-1].T + matrix[:-1, -1]
    return mapped


def rotation(angles_rad: Sequence[float]) -> NDArray[np.float64]:
    """Rotation matrix in mm: (3, 3) = R_z R_y R_x for three angles about the axes z, y, x; (2, 2) for one angle.

    Raises ValueError for another number of angles.
    """
    if len(angles_rad) not in (1, 3):
        raise ValueError(f"{len(angles_rad)} rotation angles; expected 1 (2D) or 3 (3D)")
    planes = [(0, 1)] if len(angles_rad) == 1 else [(1, 2), (0, 2), (0, 1)]  # the axes that each angle turns
    out = np.eye(2 if len(angles_rad) == 1 else 3)
    for angle, (i, j) in zip(angles_rad, planes, strict=True):
        turn = np.eye(len(out))
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        out = out @ turn
    return out


def rotation_scale(
    angles_rad: Sequence[float], scale: float, spacing_mm: Sequence[float], centre: ArrayLike
) -> Matrix:
    """Rotate about `centre` (voxels) and multiply distances from it by `scale`, both in mm: voxel -> voxel.

    angles_rad: three angles about z, y, x, or one in 2D. spacing_mm: per axis, so that a rotation of an anisotropic
    grid stays rigid in space.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    in_mm = scale * rotation(angles_rad)
    return linear(in_mm * spacing[None, :] / spacing[:, None], centre)


def in_bounds(coords: ArrayLike, shape: Sequence[int], tolerance: float = 0.0) -> NDArray[np.bool_]:
    """(..., D) -> (...): whether a point lies between the first and the last voxel centre, 0 <= c <= S - 1."""
    coords = np.asarray(coords)
    last = np.asarray(shape) - 1 + tolerance
    return np.asarray(((coords >= -tolerance) & (coords <= last)).all(axis=-1))

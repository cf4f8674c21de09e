"""Drawing two views and the points that they share, in numpy: where, before anything is read.

How a loader uses these functions is in ``nnunet_ssl.views``; the frame is in ``nnunet_ssl.geometry``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_ssl import geometry
from nnunet_ssl.anchors import Ints, Reader, draw_anchor
from nnunet_ssl.geometry import Matrix

if TYPE_CHECKING:
    from nnunet_ssl.objectives.vox2vec import Recipe


@dataclass(frozen=True)
class PairGeometry:
    """Where two views lie in a volume and which points they share: everything that was drawn, in numpy."""

    start_a: Ints  # (D,) first voxel of the box that view a is made from; may be negative
    start_b: Ints
    map_a: Matrix  # (D+1, D+1) voxel of view a -> voxel of the volume
    map_b: Matrix
    coords_a: NDArray[np.float64]  # (N, D) voxels of view a
    coords_b: NDArray[np.float64]
    valid: NDArray[np.bool_]  # (N,)

    @property
    def points(self) -> int:
        """Points that both views show."""
        return int(self.valid.sum())


def draw_starts(
    rng: np.random.Generator, shape: Sequence[int], patch: Sequence[int], anchor: Sequence[int] | Ints
) -> Ints:
    """First voxel of a patch, uniform over the positions that contain `anchor` and stay inside the volume (published
    code). On an axis that is shorter than the patch the volume is centred in it: the start is negative or zero.
    """
    start = np.empty(len(shape), dtype=np.int64)
    for i, (size, length, point) in enumerate(zip(shape, patch, anchor, strict=True)):
        if size < length:
            start[i] = -((length - size) // 2)
        else:
            start[i] = rng.integers(max(0, point - length + 1), min(point, size - length) + 1)
    return start


def draw_shared(rng: np.random.Generator, mask: NDArray[np.bool_], n: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Up to n true voxels of a box, without replacement: indices (n, D) in it and valid (n,), padded with False."""
    inside = np.flatnonzero(mask)
    drawn = rng.choice(inside, min(n, len(inside)), replace=False)
    return _padded(np.stack(np.unravel_index(drawn, mask.shape), axis=1), n)


def _padded(points: NDArray[np.integer], n: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Fill (M, D) points up to (n, D) with zeros, which `valid` marks as no points."""
    out = np.zeros((n, points.shape[1]), dtype=np.int64)
    out[: len(points)] = points
    return out, np.arange(n) < len(points)


def draw_map(
    rng: np.random.Generator,
    start: Ints,
    patch: Sequence[int],
    spacing_mm: Sequence[float],
    anchor: Ints,
    recipe: Recipe,
) -> Matrix:
    """View voxel -> volume voxel: the crop at `start`, mirrored with p = 1/2 along each of ``flip_axes``, then (affine)
    rotated and scaled about the anchor, which therefore keeps its integer place in the view.
    """
    mirrored = [axis for axis in recipe.flip_axes if rng.random() < 0.5]
    crop = geometry.compose(geometry.translation(start), geometry.flip(patch, mirrored))
    if recipe.spatial == "none":
        return crop
    limits = np.deg2rad(angles(recipe.rotation_deg, len(patch)))
    turn = rng.uniform(-limits, limits)
    scale = np.exp(rng.uniform(*np.log(recipe.scale)))
    return geometry.compose(geometry.rotation_scale(list(turn), 1.0 / scale, spacing_mm, anchor), crop)


def angles(rotation_deg: float | Sequence[float], ndim: int) -> NDArray[np.float64]:
    """``rotation_deg`` as one number an angle: three in 3D, one in 2D. Raises ValueError for another number of them."""
    count = 3 if ndim == 3 else 1
    limits = np.atleast_1d(np.asarray(rotation_deg, dtype=np.float64))
    if len(limits) not in (1, count):
        raise ValueError(f"rotation_deg has {len(limits)} numbers; expected one number or {count} for {ndim}D views")
    return limits + np.zeros(count)


def box_size(patch: Sequence[int], spacing_mm: Sequence[float], recipe: Recipe) -> tuple[int, ...]:
    """Size (voxels) of a box that holds every view that `recipe` can draw, with the neighbours that linear reading
    needs; the patch itself where views are plain crops.
    """
    if recipe.spatial == "none":
        return tuple(int(p) for p in patch)
    bound = turn_bound(angles(recipe.rotation_deg, len(patch)), len(patch))
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    side = (np.asarray(patch) - 1) * spacing / recipe.scale[0]  # mm
    reach = np.minimum(bound @ side, np.linalg.norm(side)) / spacing
    return tuple(int(r) for r in np.ceil(reach - 1e-9) + 2)


def turn_bound(limits_deg: NDArray[np.float64], ndim: int) -> NDArray[np.float64]:
    """(D, D) upper bounds of the entries' sizes of every rotation with angles up to `limits_deg` (one, or z, y, x)."""
    sines = np.sin(np.deg2rad(np.minimum(limits_deg, 90.0)))
    bound = np.eye(ndim)  # each factor has cosines <= 1 and sines <= those
    for (i, j), sine in zip([(1, 2), (0, 2), (0, 1)] if ndim == 3 else [(0, 1)], sines, strict=True):
        turn = np.eye(ndim)
        turn[i, j] = turn[j, i] = sine
        bound = bound @ turn
    return np.minimum(bound, 1.0)


def draw_pair(
    rng: np.random.Generator,
    shape: Sequence[int],
    patch: Sequence[int],
    spacing_mm: Sequence[float],
    recipe: Recipe,
    find_anchor: Callable[[np.random.Generator], Sequence[int] | Ints] | None,
    read_mask: Reader,
) -> PairGeometry:
    """Draw two views around one foreground voxel and up to ``voxels_per_pair`` foreground voxels that both hold.

    shape, patch: voxels; spacing_mm: of the volume's grid, per axis. find_anchor(rng) -> (D,) a foreground voxel; None:
    ``draw_anchor``. read_mask(start, size) -> bool (*size) foreground, asked only for boxes inside the volume. The
    anchor is in both views, so there is at least one shared voxel to draw from, and never one outside the volume.
    """
    anchor = np.asarray(draw_anchor(rng, shape, read_mask) if find_anchor is None else find_anchor(rng), dtype=np.int64)
    starts, maps = [], []
    for _ in range(2):
        start = draw_starts(rng, shape, patch, anchor)
        matrix = draw_map(rng, start, patch, spacing_mm, anchor, recipe)
        if recipe.spatial != "none":
            start = np.floor(geometry.apply(matrix, _corners(patch)).min(axis=0) + 1e-9).astype(np.int64)
        starts.append(start)
        maps.append(matrix)
    draw = _draw_in_crops if recipe.spatial == "none" else _draw_in_view
    coords_a, coords_b, valid = draw(rng, shape, patch, maps[0], maps[1], read_mask, recipe.voxels_per_pair)
    return PairGeometry(starts[0], starts[1], maps[0], maps[1], coords_a, coords_b, valid)


def _corners(shape: Sequence[int]) -> NDArray[np.float64]:
    """(2^D, D) the outermost voxel centres of a grid."""
    ends = np.indices([2] * len(shape)).reshape(len(shape), -1).T
    return np.asarray(ends * (np.asarray(shape) - 1.0), dtype=np.float64)


Points = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]


def _draw_in_crops(
    rng: np.random.Generator,
    shape: Sequence[int],
    patch: Sequence[int],
    map_a: Matrix,
    map_b: Matrix,
    read_mask: Reader,
    n: int,
) -> Points:
    """Foreground voxels of the overlap of two crops, in integers."""
    reach = np.stack([geometry.apply(m, _corners(patch)) for m in (map_a, map_b)])  # (2, 2^D, D)
    first = np.maximum(reach.min(axis=1).max(axis=0), 0).astype(np.int64)
    last = np.minimum(reach.max(axis=1).min(axis=0), np.asarray(shape) - 1).astype(np.int64)
    points, valid = draw_shared(rng, np.asarray(read_mask(first, last - first + 1), dtype=bool), n)
    inside = valid[:, None]
    coords = [np.where(inside, geometry.apply(geometry.invert(m), points + first), 0.0) for m in (map_a, map_b)]
    return coords[0], coords[1], valid


def _draw_in_view(
    rng: np.random.Generator,
    shape: Sequence[int],
    patch: Sequence[int],
    map_a: Matrix,
    map_b: Matrix,
    read_mask: Reader,
    n: int,
) -> Points:
    """Voxels of view b whose place in the volume is foreground (nearest voxel of the mask) and in view a.

    A few random voxels of b are looked at first; all of them only where those do not give n points. The result is
    uniform either way: no valid voxel is preferred to another.
    """
    b_to_a = geometry.compose(geometry.invert(map_a), map_b)
    reach = geometry.apply(geometry.invert(b_to_a), _corners(patch))  # view a, seen in b
    first = np.maximum(np.ceil(reach.min(axis=0) - 1e-6), 0).astype(np.int64)
    last = np.minimum(np.floor(reach.max(axis=0) + 1e-6), np.asarray(patch) - 1).astype(np.int64)
    size = last - first + 1
    total = int(np.prod(size))
    for count in (min(8 * n, total), total):
        chosen = rng.choice(total, count, replace=False)  # in random order
        points = np.stack(np.unravel_index(chosen, tuple(size)), axis=1) + first
        points = points[in_view(geometry.apply(b_to_a, points), patch)]
        points = points[_foreground(geometry.apply(map_b, points), shape, read_mask)]
        if len(points) >= n or count == total:
            break
    coords_b, valid = _padded(points[:n], n)
    coords_a = np.clip(geometry.apply(b_to_a, coords_b), 0.0, np.asarray(patch) - 1.0)
    return np.where(valid[:, None], coords_a, 0.0), coords_b.astype(np.float64), valid


def in_view(coords: NDArray[np.float64], patch: Sequence[int]) -> NDArray[np.bool_]:
    """Inside a view, up to the rounding of a composed map (the anchor may lie on its border)."""
    return geometry.in_bounds(coords, patch, tolerance=1e-6)


def _foreground(places: NDArray[np.float64], shape: Sequence[int], read_mask: Reader) -> NDArray[np.bool_]:
    """(M, D) places in the volume -> (M,): inside it, with every voxel that linear reading needs, and in the mask."""
    out = geometry.in_bounds(places, shape, tolerance=1e-6)
    if out.any():
        voxels = np.rint(places[out]).astype(np.int64)
        first = voxels.min(axis=0)
        mask = np.asarray(read_mask(first, voxels.max(axis=0) - first + 1), dtype=bool)
        out[out] = mask[tuple((voxels - first).T)]
    return out


def read_box(read_image: Reader, shape: Sequence[int], start: Ints, size: Sequence[int]) -> NDArray[np.float32]:
    """(C, *size) float32 of a volume from `start` on; zero (nnU-Net's padding) outside the volume."""
    first = np.clip(start, 0, np.asarray(shape))
    last = np.clip(start + np.asarray(size), first, np.asarray(shape))
    inside = np.asarray(read_image(first, last - first), dtype=np.float32)
    if inside.shape[1:] == tuple(size):
        return np.ascontiguousarray(inside)
    box = np.zeros((len(inside), *size), dtype=np.float32)
    filled = [slice(None)] + [slice(f - s, e - s) for f, e, s in zip(first, last, start, strict=True)]
    box[tuple(filled)] = inside
    return box

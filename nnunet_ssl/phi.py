"""Pix2Rep's pair of views, drawn in numpy: a part of a volume, and the same part moved by a spatial transform.

View a stays; view b is a turned, flipped, cropped, shifted and bent. The map psi: b -> a is an affine map (composed in
mm) after an elastic deformation of b's grid, and is known exactly; its inverse is never needed. One box of the volume
holds both views. Frame: see ``nnunet_ssl.geometry``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_ssl import elastic, geometry
from nnunet_ssl.anchors import Ints, Reader, draw_anchor
from nnunet_ssl.drawing import angles, draw_starts, read_box, turn_bound
from nnunet_ssl.geometry import Matrix

if TYPE_CHECKING:
    from nnunet_ssl.objectives.pix2rep import Recipe

ANISOTROPIC = 3.0  # nnU-Net's: beyond this ratio of spacings a grid is turned in its plane alone
LOOKED_AT = {2: 16, 3: 8}  # places an axis of b at which a draw is judged


@dataclass(frozen=True)
class PhiGeometry:
    """Everything that was drawn of a pair, and the foreground around it."""

    start: Ints  # (D,) first voxel of the box; may be negative
    map_a: Matrix  # (D+1, D+1) voxel of a -> voxel of the box
    psi: Matrix  # (D+1, D+1) voxel of b, bent -> voxel of a
    control: NDArray[np.float32]  # (D, *lattice) moves of b's control points, voxels of b
    mask: NDArray[np.bool_]  # (*box) foreground; false outside the volume
    bounds: NDArray[np.float32]  # (2, D) first and last voxel of the volume, in the box
    points: int  # how many of a few places of b are foreground that a shows


Sample = tuple[PhiGeometry, NDArray[np.float32]]


def draw_pair(
    rng: np.random.Generator,
    shape: Sequence[int],
    patch: Sequence[int],
    spacing_mm: Sequence[float],
    recipe: Recipe,
    find_anchor: Callable[[np.random.Generator], Sequence[int] | Ints] | None,
    read_mask: Reader,
) -> PhiGeometry:
    """Draw a view a that holds a foreground voxel, and the transform that makes b of it.

    shape, patch: voxels; spacing_mm: of the volume's grid, per axis. find_anchor(rng) -> (D,) a foreground voxel; None:
    ``draw_anchor``. read_mask(start, size) -> bool (*size) foreground, asked only for boxes inside the volume.
    """
    anchor = np.asarray(draw_anchor(rng, shape, read_mask) if find_anchor is None else find_anchor(rng), dtype=np.int64)
    map_a = draw_part(rng, shape, patch, anchor, recipe)
    psi, control = draw_phi(rng, patch, spacing_mm, recipe)
    size = box_size(patch, spacing_mm, recipe)
    centre = geometry.apply(map_a, (np.asarray(patch) - 1) / 2)
    start = np.floor(centre - (np.asarray(size) - 1) / 2).astype(np.int64)
    mask = read_box(lambda s, n: read_mask(s, n)[None], shape, start, size)[0] > 0
    map_a = geometry.compose(geometry.translation(-start), map_a)
    bounds = np.stack([-start, np.asarray(shape) - 1 - start]).astype(np.float32)
    points = count_points(patch, map_a, psi, control, mask, bounds, recipe)
    return PhiGeometry(start, map_a, psi, control, mask, bounds, points)


def read_pair(
    drawn: PhiGeometry, shape: Sequence[int], size: Sequence[int], read_image: Reader, read_mask: Reader
) -> Sample:
    """What was drawn, with the box (C, *size) that both views are made from. The mask was read when it was drawn."""
    return drawn, read_box(read_image, shape, drawn.start, size)


def draw_part(
    rng: np.random.Generator, shape: Sequence[int], patch: Sequence[int], anchor: Ints, recipe: Recipe
) -> Matrix:
    """View a, voxel -> voxel of the volume: a crop that holds `anchor`, or (``view_side``) a part of another size
    that is stretched to the patch.
    """
    if recipe.view_side is None:
        return geometry.translation(draw_starts(rng, shape, patch, anchor))
    side = rng.uniform(recipe.view_side[0], recipe.view_side[1])
    extent = np.maximum(1, np.rint(side * np.asarray(patch)).astype(np.int64))
    start = draw_starts(rng, shape, list(extent), anchor)
    scale = extent / np.asarray(patch)
    return geometry.compose(geometry.translation(start + 0.5 * scale - 0.5), np.diag([*scale, 1.0]))


def draw_phi(
    rng: np.random.Generator, patch: Sequence[int], spacing_mm: Sequence[float], recipe: Recipe
) -> tuple[Matrix, NDArray[np.float32]]:
    """psi for views of `patch` voxels at `spacing_mm`, both per axis: its matrix, and the moves of b's control points.

    b shows a part of a, ``crop_side`` of its side, at a uniform place inside it, turned about its own centre, flipped
    along some of ``flip_axes`` with probability 1/2 each, stretched to the whole patch. ``identity_p``: nothing of it.
    """
    ndim = len(patch)
    still = np.zeros((ndim, *elastic.lattice_shape(patch, knots(patch, recipe))), np.float32)
    if rng.random() < recipe.identity_p:
        return geometry.identity(ndim), still
    limits = np.deg2rad(rotation_limits(spacing_mm, recipe))
    side = rng.uniform(recipe.crop_side[0], recipe.crop_side[1])
    centre = (np.asarray(patch) - 1) / 2
    shift = rng.uniform(-1.0, 1.0, ndim) * max(0.0, 1.0 - side) * centre
    turned = geometry.rotation_scale(list(rng.uniform(-limits, limits)), side, spacing_mm, centre)
    mirrored = [axis for axis in recipe.flip_axes if rng.random() < 0.5]
    psi = geometry.compose(geometry.translation(shift), turned, geometry.flip(patch, mirrored))
    if rng.random() >= recipe.elastic_p:
        return psi, still
    step = np.asarray(knots(patch, recipe)).reshape(-1, *[1] * ndim)
    most = rng.uniform(recipe.elastic_amount[0], recipe.elastic_amount[1]) * elastic.LARGEST_MOVE[ndim] * step
    return psi, (rng.uniform(-1.0, 1.0, still.shape) * most).astype(np.float32)


def knots(patch: Sequence[int], recipe: Recipe) -> list[float]:
    """Distance between control points, in voxels, per axis."""
    return [max(1.0, recipe.elastic_spacing * size) for size in patch]


def rotation_limits(spacing_mm: Sequence[float], recipe: Recipe) -> NDArray[np.float64]:
    """Largest angles in degrees: one in 2D, three in 3D (about z, y, x).

    Where the recipe leaves them open an anisotropic grid is turned about its coarse axis alone. Raises ValueError for
    another number of angles than the views have.
    """
    ndim = len(spacing_mm)
    if recipe.rotation_deg is not None:
        return angles(recipe.rotation_deg, ndim)
    if ndim == 2:
        return angles(90.0, ndim)
    anisotropic = max(spacing_mm) / min(spacing_mm) > ANISOTROPIC
    coarse = np.arange(3) == int(np.argmax(spacing_mm))
    return np.where(coarse, 90.0, 0.0) if anisotropic else angles([90.0, 15.0, 15.0], ndim)


def box_size(patch: Sequence[int], spacing_mm: Sequence[float], recipe: Recipe) -> tuple[int, ...]:
    """Size (voxels) of a box about the middle of view a that holds every pair that `recipe` can draw, with the
    neighbours that linear reading needs. Raises ValueError for angles or axes that the views do not have.
    """
    if any(axis >= len(patch) for axis in recipe.flip_axes):
        raise ValueError(f"flip_axes is {list(recipe.flip_axes)}; expected axes of a {len(patch)}D patch")
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    half = (np.asarray(patch) - 1) / 2 * spacing  # mm
    side = recipe.crop_side[1]
    bound = turn_bound(rotation_limits(spacing_mm, recipe), len(patch))
    reach = side * np.minimum(bound @ half, np.linalg.norm(half)) + max(0.0, 1.0 - side) * half
    if recipe.elastic_p > 0:
        moves = elastic.LARGEST_MOVE[len(patch)] * np.asarray(knots(patch, recipe)) * spacing
        reach = reach + side * bound @ moves
    stretch = 1.0 if recipe.view_side is None else recipe.view_side[1]
    # an extent of whole voxels, and a start of them: one more on either side, and one that linear reading looks at
    voxels = 2 * stretch * np.maximum(reach, half) / spacing
    return tuple(int(v) for v in np.ceil(voxels - 1e-9) + 4)


def count_points(
    patch: Sequence[int],
    map_a: Matrix,
    psi: Matrix,
    control: NDArray[np.float32],
    mask: NDArray[np.bool_],
    bounds: NDArray[np.float32],
    recipe: Recipe,
) -> int:
    """How many of a few evenly spread places of b are in a and in the foreground: cheap, and never more than there are.

    With ``mask_invalid`` false every place counts.
    """
    axes = [np.unique(np.linspace(0, size - 1, LOOKED_AT[len(patch)]).astype(np.int64)) for size in patch]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float64)  # (*few, D)
    if not recipe.mask_invalid:
        return int(np.prod(places.shape[:-1]))
    grid = [torch.from_numpy(axis) for axis in axes]
    bent = places + elastic.displacement(torch.from_numpy(control)[None], grid, knots(patch, recipe))[0].numpy()
    in_a = geometry.apply(psi, bent)
    in_box = geometry.apply(map_a, in_a)
    inside = geometry.in_bounds(in_a, patch) & ((in_box >= bounds[0]) & (in_box <= bounds[1])).all(-1)
    return int(mask[tuple(np.rint(in_box[inside]).astype(np.int64).T)].sum())

"""Where voxels may be drawn from: the body in CT, everything but a dark border background elsewhere.

Arrays are (z, y, x), spacings are mm in the same order. Both functions work on a grid of about 3 mm where the image is
finer and larger than that; the outline is then sharpened on the full grid. The result errs on the side of keeping: a
voxel of air inside the mask costs little, an organ outside it is never seen in pretraining.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]

AIR_HU = -500.0  # air, lung and padding (-1024, -2048, -3024) are below, tissue and table above
OPEN_AIR_HU = -925.0  # smoothed; only air outside the body and padding are below, lung is above
THIN_MM = 4.0  # half the thickness under which a structure may be a table top
CLOSE_MM = 6.0  # half the width under which an opening (nostril, mouth, gap to the table) counts as closed
PART_OF_LARGEST = 0.05  # a separate part is body (a leg) from this share of the largest part on
WORKING_MM = 3.0
WORKING_VOXELS = 2**16  # smaller images are worked on as they are
DARK_SHARE = 0.15  # of the intensity range: a background is darker than this
DARK_BORDER_SHARE = 0.05  # of the border voxels must be dark, otherwise there is no background


def ct_body(image_hu: NDArray[np.generic], spacing_mm: Sequence[float], axial_axis: int = 0) -> Mask:
    """The patient in a CT, lungs and airways filled, table and air removed.

    :param image_hu: (z, y, x) in HU; any padding value below -500 is air.
    :param spacing_mm: three numbers in the order of the axes.
    :param axial_axis: the axis from feet to head. Air is flooded in every slice by itself, from the borders of the
        other two axes, so that lungs and airways that are cut by the end of the scan (or of what an anonymiser left of
        it) stay inside.
    :return: mask of the image's shape. All False if there is no body: nothing solid is thicker than a table top. An
        image without air (a crop inside the body, or one that was clipped to a window) is treated as
        :func:`dark_border_foreground` does.
    """
    if float(image_hu.min()) >= AIR_HU:
        return dark_border_foreground(image_hu, spacing_mm)
    image = np.moveaxis(np.asarray(image_hu), axial_axis, 0)
    in_plane = [s for axis, s in enumerate(spacing_mm) if axis != axial_axis]
    spacing = np.asarray([spacing_mm[axial_axis], *in_plane], float)
    coarse, factors = _coarse(image, spacing, clip=(-1000.0, 0.0))
    body = _body_on_working_grid(coarse, spacing * factors)
    return np.ascontiguousarray(np.moveaxis(_refine(body, factors, image >= AIR_HU), 0, axial_axis))


def dark_border_foreground(image: NDArray[np.generic], spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> Mask:
    """Everything but a dark background that touches the border of the image; without such a background, everything.

    A constant that fills much of the border (padding) is background whatever its value. No histogram split is made:
    Otsu's cuts through tissue where an image holds no air. So an image of noise alone is foreground from end to end.

    :param image: (z, y, x), any units.
    :param spacing_mm: three numbers in the order of the axes.
    :return: mask of the image's shape, never all False.
    """
    image = np.asarray(image)
    spacing = np.asarray(spacing_mm, float)
    padding = _padding_value(image)
    padded = np.zeros(image.shape, bool) if padding is None else image == padding
    rest = image[~padded]
    if rest.size == 0:
        return np.ones(image.shape, bool)
    filled = np.where(padded, rest.min(), image) if padding is not None else image
    coarse, factors = _coarse(filled, spacing)
    is_dark = _is_dark(coarse, rest, _coarse(padded, spacing)[0] > 0.5)
    background = _flooded(is_dark, _border(coarse.shape, axes=(0, 1, 2)), spacing * factors)
    if background.mean() < 0.01:
        return np.ones(image.shape, bool)
    foreground = _refine(~background, factors, np.ones(image.shape, bool))
    return foreground if foreground.any() else np.ones(image.shape, bool)


def foreground(images: NDArray[np.generic], channel_names: Sequence[str], spacing_mm: Sequence[float],
               axial_axis: int = 0) -> Mask:
    """The mask of a case: the union over its channels, each by what it is.

    :param images: (C, z, y, x), raw intensities; channels named CT are in HU.
    :param channel_names: C names as in dataset.json; ``CT`` in any case is CT, as in nnU-Net.
    :return: (z, y, x). With CT among the channels the body in it decides alone.
    """
    is_ct = [name.casefold() == "ct" for name in channel_names]
    masks = [
        ct_body(image, spacing_mm, axial_axis) if ct else dark_border_foreground(image, spacing_mm)
        for image, ct in zip(images, is_ct, strict=True) if ct or not any(is_ct)
    ]
    return np.asarray(np.logical_or.reduce(masks))


def _body_on_working_grid(hu: NDArray[np.float32], spacing: NDArray[np.float64]) -> Mask:
    solid = hu >= AIR_HU
    core = _grown(_shrunk(solid, THIN_MM, spacing), THIN_MM, spacing)
    core = _large_parts(core)  # empty where all is as thin as a table top: no body
    # what the opening took from the kept parts (ears, nose, the skin's corners) comes back; thin plates do not
    body = _touching(_grown(core, THIN_MM + spacing.max(), spacing) & solid, core)
    smooth = ndimage.uniform_filter(hu, 3, mode="nearest")
    # a plan's window may have cut everything below, say, -900 HU
    open_air = max(OPEN_AIR_HU, float(hu.min()) + 25.0)
    seeds = _border(hu.shape, axes=(1, 2)) & (smooth < open_air)
    return ~_flooded(~body, seeds, spacing, slice_by_slice=True) if body.any() else body


def _touching(mask: Mask, core: Mask, structure: Mask | None = None) -> Mask:
    """The parts of ``mask`` that hold a voxel of ``core``: a table beyond a gap of air does not."""
    labels, number = ndimage.label(mask, structure)
    kept = np.zeros(number + 1, bool)
    kept[np.unique(labels[core & mask])] = True
    kept[0] = False
    return np.asarray(kept[labels])


def _large_parts(mask: Mask) -> Mask:
    labels, number = ndimage.label(mask)
    if number < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= PART_OF_LARGEST * sizes.max())[labels])


def _flooded(passable: Mask, seeds: Mask, spacing: NDArray[np.float64], slice_by_slice: bool = False) -> Mask:
    """The part of ``passable`` that a ball (in slices: a disc) of radius CLOSE_MM can reach from ``seeds``."""
    ball, neighbours = _ball(CLOSE_MM / spacing), ndimage.generate_binary_structure(3, 1)
    if slice_by_slice:
        ball = ball[ball.shape[0] // 2][None]
        neighbours[0] = neighbours[2] = False
    wide = ndimage.binary_erosion(passable, ball, border_value=1)
    reached = _touching(wide, seeds, neighbours)
    return np.asarray(ndimage.binary_dilation(reached, ball) & passable)


def _shrunk(mask: Mask, radius_mm: float, spacing: NDArray[np.float64]) -> Mask:
    """Erosion by a ball; nothing is taken off at the border of the image."""
    return np.asarray(ndimage.binary_erosion(mask, _ball(radius_mm / spacing), border_value=1))


def _grown(mask: Mask, radius_mm: float, spacing: NDArray[np.float64]) -> Mask:
    return np.asarray(ndimage.binary_dilation(mask, _ball(radius_mm / spacing)))


def _ball(radii: NDArray[np.float64]) -> Mask:
    """Ellipsoid with these radii in voxels, at least one voxel to each side and at most four: larger ones take long."""
    radii = np.clip(radii, 1.0, 4.0)
    grid = np.ogrid[tuple(slice(-int(r), int(r) + 1) for r in radii)]
    return np.asarray(sum((axis / r) ** 2 for axis, r in zip(grid, radii, strict=True)) <= 1.0 + 1e-9)


def _is_dark(coarse: NDArray[np.float32], rest: NDArray[np.generic], padded: Mask) -> Mask:
    """Voxels as dark as the background at the border; none where the border shows no dark background."""
    lowest, highest = (float(v) for v in np.percentile(rest.astype(np.float32), (0.1, 99.9)))
    smooth = ndimage.uniform_filter(coarse, 3, mode="nearest")
    extent = highest - lowest
    on_border = _border(coarse.shape, axes=(0, 1, 2)) & ~padded
    values = smooth[on_border]
    dark = values[values < lowest + DARK_SHARE * extent]
    if extent <= 0 or dark.size < max(1, DARK_BORDER_SHARE * values.size):
        return padded
    centre = float(np.median(dark))
    spread = 1.4826 * float(np.median(np.abs(dark - centre)))
    threshold = min(lowest + DARK_SHARE * extent, centre + 4.0 * spread + 0.01 * extent)
    return np.asarray((smooth < threshold) | padded)


def _padding_value(image: NDArray[np.generic]) -> float | None:
    """The value that fills at least a quarter of the border exactly."""
    values, counts = np.unique(image[_border(image.shape, axes=(0, 1, 2))], return_counts=True)
    most = int(counts.argmax())
    return float(values[most]) if counts[most] >= 0.25 * counts.sum() else None


def _coarse(image: NDArray[np.generic], spacing: NDArray[np.float64],
            clip: tuple[float, float] | None = None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Block means on a grid of about 3 mm, and the block's size; last blocks are completed with edge values."""
    factors = np.ones(3, np.int64)
    if image.size > WORKING_VOXELS:
        factors = np.maximum(1, np.floor(WORKING_MM / spacing + 1e-6)).astype(np.int64)
    blocks = -(-np.asarray(image.shape) // factors)
    out = np.empty(blocks, np.float32)
    for z in range(blocks[0]):  # slab by slab: a float copy of a large CT would take gigabytes
        slab = image[z * factors[0]:(z + 1) * factors[0]].astype(np.float32)
        slab = slab if clip is None else np.clip(slab, *clip)
        missing = blocks[1:] * factors[1:] - image.shape[1:]
        slab = np.pad(slab, ((0, 0), (0, missing[0]), (0, missing[1])), mode="edge")
        out[z] = slab.reshape(len(slab), blocks[1], factors[1], blocks[2], factors[2]).mean(axis=(0, 2, 4))
    return out, factors


def _refine(coarse: Mask, factors: NDArray[np.int64], tissue: Mask) -> Mask:
    """``coarse`` on the full grid; the blocks at its outline keep their tissue voxels only."""
    if (factors == 1).all():
        return coarse
    inner = ndimage.binary_erosion(coarse, iterations=1, border_value=1)
    outer = ndimage.binary_dilation(coarse, iterations=1) if not tissue.all() else coarse
    return _enlarge(inner, factors, tissue.shape) | (_enlarge(outer, factors, tissue.shape) & tissue)


def _enlarge(coarse: Mask, factors: NDArray[np.int64], shape: tuple[int, ...]) -> Mask:
    for axis, factor in enumerate(factors):
        coarse = np.repeat(coarse, factor, axis=axis)
    return coarse[tuple(slice(size) for size in shape)]


def _border(shape: Sequence[int], axes: Sequence[int]) -> Mask:
    border = np.zeros(shape, bool)
    for axis in axes:
        faces = np.moveaxis(border, axis, 0)
        faces[0] = faces[-1] = True
    return border

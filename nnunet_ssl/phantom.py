"""Seeded CT- and MR-like volumes of a trunk with labelled organs: the data of the demo and of the tests.

Every subject has its own shape, pose, contrast, field of view, noise, padding value and table. Organs, muscle and bowel
share their intensities: they stand out from the fat around them, but which is which is told by place and shape, not by
a threshold. Volumes are (z, y, x) with z to the head, y to the back and x to the patient's left; positions of organs
are given in a body frame in which the trunk fills about [-1, 1] on every axis. An MR volume has arbitrary units, a bias
field and Rician noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

Volume = NDArray[np.float32]
Mask = NDArray[np.bool_]

AIR, LUNG, FAT, MUSCLE, BONE, BOWEL = "air", "lung", "fat", "muscle", "bone", "bowel"


@dataclass(frozen=True)
class Organ:
    """Union of ellipsoids: (centre, radii), each (z, y, x) in the body frame; ``uptake``: HU gained with contrast."""

    name: str
    parts: tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...]
    uptake: float


ORGANS = (
    Organ("liver", (((0.20, -0.05, -0.42), (0.36, 0.48, 0.36)), ((0.26, -0.28, -0.08), (0.20, 0.22, 0.34))), 40.0),
    Organ("spleen", (((0.28, 0.30, 0.58), (0.30, 0.30, 0.18)),), 45.0),
    Organ("right_kidney", (((-0.28, 0.36, -0.40), (0.30, 0.20, 0.18)),), 70.0),
    Organ("left_kidney", (((-0.20, 0.38, 0.40), (0.30, 0.20, 0.18)),), 70.0),
    Organ("stomach", (((0.22, -0.30, 0.36), (0.22, 0.22, 0.26)), ((0.02, -0.36, 0.16), (0.14, 0.16, 0.24))), 15.0),
    Organ("bladder", (((-0.72, -0.20, 0.00), (0.20, 0.26, 0.28)),), 5.0),
)
SPINE_Y, SPINE_RADIUS = 0.58, 0.15
NATIVE_HU = {AIR: -1000.0, LUNG: -820.0, FAT: -100.0, MUSCLE: 50.0, BONE: 350.0, BOWEL: 45.0}
MR_LEVEL = {AIR: 0.0, LUNG: 0.06, FAT: 0.85, MUSCLE: 0.40, BONE: 0.18, BOWEL: 0.45}
PADDING_HU = (-1000.0, -1024.0, -2048.0, -3024.0)


def make_case(rng: np.random.Generator, modality: str = "CT", shape: Sequence[int] = (48, 64, 64),
              organs: int = 4) -> tuple[Volume, NDArray[np.uint8], tuple[float, float, float]]:
    """One subject.

    :param modality: ``CT`` (HU) or ``MR`` (arbitrary units, a new scale for every subject).
    :param shape: (z, y, x) in voxels, 16 or more each.
    :param organs: how many of ORGANS get a label; the others are in the image all the same.
    :return: image (z, y, x) float32; labels (z, y, x) uint8 with 0 background and 1..organs; spacing (z, y, x) in mm.
    :raises ValueError: for another modality, a smaller shape or another number of organs.
    """
    if modality not in ("CT", "MR"):
        raise ValueError(f"modality is {modality!r}, expected 'CT' or 'MR'")
    if len(shape) != 3 or min(shape) < 16:
        raise ValueError(f"shape is {tuple(shape)}, expected three numbers of at least 16")
    if not 1 <= organs <= len(ORGANS):
        raise ValueError(f"organs is {organs}, expected 1 to {len(ORGANS)}")
    spacing = _spacing(rng, shape)
    frame = _body_frame(rng, shape)
    tissues, organ_masks = _anatomy(rng, frame)
    labels = np.zeros(shape, np.uint8)
    for number, mask in enumerate(organ_masks[:organs], start=1):
        labels[mask] = number
    render = _render_ct if modality == "CT" else _render_mr
    return render(rng, frame, tissues, organ_masks), labels, spacing


def organ_names(organs: int = 4) -> list[str]:
    """Names of the labels 1..organs."""
    return [organ.name for organ in ORGANS[:organs]]


def _spacing(rng: np.random.Generator, shape: Sequence[int]) -> tuple[float, float, float]:
    """A field of view of about 300 x 400 x 400 mm, its size a little different for every subject."""
    height, width = 300.0 * rng.uniform(0.9, 1.1), 400.0 * rng.uniform(0.9, 1.1)
    z, y, x = (round(size / voxels, 3) for size, voxels in zip((height, width, width), shape, strict=True))
    return z, y, x


def _body_frame(rng: np.random.Generator, shape: Sequence[int]) -> NDArray[np.float32]:
    """(3, z, y, x): where every voxel lies in the body frame, by pose, size and a smooth deformation."""
    axes = [np.linspace(-1.0, 1.0, size, dtype=np.float32) for size in shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    size = np.array([1.0, 0.62, 0.86]) * rng.uniform(0.9, 1.1, 3)
    centre = np.array([0.0, -0.05, 0.0]) + rng.uniform(-1, 1, 3) * [0.12, 0.06, 0.06]
    moved = np.einsum("ij,j...->i...", _rotation(np.deg2rad(rng.uniform(-8, 8, 3))), grid - centre[:, None, None, None])
    bent = moved / size[:, None, None, None] + [_smooth(rng, shape, 4, 0.05) for _ in range(3)]
    return np.asarray(bent, np.float32)


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def _smooth(rng: np.random.Generator, shape: Sequence[int], knots: int, std: float) -> Volume:
    """A smooth random field with ``knots`` degrees of freedom an axis."""
    field = ndimage.zoom(rng.normal(0.0, std, (knots,) * 3), [size / knots for size in shape], order=3, mode="nearest")
    return np.asarray(field, np.float32)


def _ellipsoid(frame: NDArray[np.float32], centre: ArrayLike, radii: ArrayLike) -> Mask:
    centre, radii = np.asarray(centre), np.asarray(radii)
    parts = [((frame[i] - centre[i]) / radii[i]) ** 2 for i in range(3)]
    return np.asarray(sum(parts) <= 1.0)


def _anatomy(rng: np.random.Generator, frame: NDArray[np.float32]) -> tuple[dict[str, Mask], list[Mask]]:
    """Disjoint tissue masks, and a mask for every organ of ORGANS; later things lie in front of earlier ones."""
    z, y, x = frame
    radius = (np.abs(y) ** 2.5 + np.abs(x) ** 2.5) ** 0.4  # between an ellipse and a box
    body, inner = radius <= 1.0, radius <= 1.0 - rng.uniform(0.06, 0.14)
    lungs = reduce(np.logical_or, (_ellipsoid(frame, (1.0, -0.02, side), (0.52, 0.66, 0.36)) for side in (-0.46, 0.46)))
    spine = np.hypot((y - SPINE_Y) / 1.2, x) <= SPINE_RADIUS * rng.uniform(0.9, 1.15)
    gaps = np.abs((z * rng.uniform(4.2, 5.0) + rng.uniform(0, 1)) % 1.0 - 0.5) < 0.38  # discs between the vertebrae
    ribs = (np.abs(radius - 0.8) < 0.035) & (z > 0.1) & ((z * 3.0 + np.abs(y)) % 1.0 < 0.45)
    pelvis = (np.abs(np.hypot(y - 0.25, np.abs(x) - 0.5) - 0.3) < 0.06) & (z < -0.6)
    bowel = _bowel(rng, frame)
    masks = [_organ(rng, frame, organ) & inner for organ in ORGANS]
    rest = inner.copy()
    for number in range(len(masks) - 1, -1, -1):  # organs do not overlap: the later in the list gives way
        for other in masks[:number]:
            masks[number] &= ~other
    for mask in masks:
        rest &= ~mask
    lungs, bone = lungs & rest, (spine & gaps | ribs | pelvis) & rest
    lungs &= ~bone
    bowel &= rest & ~lungs & ~bone
    cavity = (((y + 0.12) / 0.62) ** 2 + (x / 0.72) ** 2 <= 1.0) | ((np.abs(y - 0.36) < 0.24) & (np.abs(x) < 0.62))
    muscle = rest & ~lungs & ~bone & ~bowel & (~cavity | (np.hypot(y - SPINE_Y, x) < 0.24))
    fat = body & ~inner | rest & ~lungs & ~bone & ~bowel & ~muscle
    return {AIR: ~body, FAT: fat, LUNG: lungs, BONE: bone, BOWEL: bowel, MUSCLE: muscle}, masks


def _organ(rng: np.random.Generator, frame: NDArray[np.float32], organ: Organ) -> Mask:
    shift, size = rng.normal(0.0, 0.03, 3), rng.uniform(0.85, 1.15, 3)
    parts = [_ellipsoid(frame, np.add(centre, shift), np.multiply(radii, size)) for centre, radii in organ.parts]
    return np.asarray(reduce(np.logical_or, parts))


def _bowel(rng: np.random.Generator, frame: NDArray[np.float32]) -> Mask:
    """Loops as large as organs, at other places in every subject."""
    centres = rng.uniform((-0.95, -0.65, -0.65), (0.10, 0.25, 0.65), (14, 3))
    loops = [_ellipsoid(frame, centre, rng.uniform(0.10, 0.24, 3)) for centre in centres]
    return np.asarray(reduce(np.logical_or, loops))


def _render_ct(rng: np.random.Generator, frame: NDArray[np.float32], tissues: dict[str, Mask],
               organ_masks: list[Mask]) -> Volume:
    contrast = rng.uniform(0.0, 1.0)
    image = np.empty(frame.shape[1:], np.float32)
    for name, mask in tissues.items():
        image[mask] = NATIVE_HU[name] + (rng.normal(0.0, 8.0) if name != AIR else 0.0)
    for organ, mask in zip(ORGANS, organ_masks, strict=True):
        image[mask] = 50.0 + rng.normal(0.0, 12.0) + contrast * organ.uptake
    loops, _ = ndimage.label(tissues[BOWEL])
    image[tissues[BOWEL]] = rng.uniform(10.0, 130.0, loops.max() + 1)[loops[tissues[BOWEL]]]  # some with oral contrast
    inside = ~tissues[AIR]
    image += inside * (_smooth(rng, image.shape, 8, 8.0) + rng.normal(0.0, 6.0, image.shape)).astype(np.float32)
    if rng.random() < 0.7:
        image[_table(rng, inside)] = rng.uniform(-300.0, 100.0)
    image = ndimage.gaussian_filter(image, 0.4) + rng.normal(0.0, rng.uniform(8.0, 25.0), image.shape)
    image[_outside_scanner(rng, image.shape)] = rng.choice(PADDING_HU)
    return np.asarray(np.rint(image), np.float32)


def _table(rng: np.random.Generator, body: Mask) -> Mask:
    """A thin plate behind the back, with air between."""
    table = np.zeros_like(body)
    back = int(np.flatnonzero(body.any(axis=(0, 2))).max())
    top = back + 3 + int(rng.integers(0, 2))
    width = body.shape[2]
    margin = int(width * rng.uniform(0.05, 0.2))
    table[:, top:top + 1, margin:width - margin] = True
    return table


def _outside_scanner(rng: np.random.Generator, shape: Sequence[int]) -> Mask:
    """What lies outside the round field of view, for two subjects in three."""
    y, x = np.ogrid[-1.0:1.0:shape[1] * 1j, -1.0:1.0:shape[2] * 1j]
    radius = rng.uniform(1.0, 1.2) if rng.random() < 0.67 else 2.0
    return np.asarray(np.broadcast_to(np.hypot(y, x) > radius, shape))


def _render_mr(rng: np.random.Generator, frame: NDArray[np.float32], tissues: dict[str, Mask],
               organ_masks: list[Mask]) -> Volume:
    level = {name: max(0.0, value * rng.uniform(0.8, 1.2)) for name, value in MR_LEVEL.items()}
    image = np.empty(frame.shape[1:], np.float32)
    for name, mask in tissues.items():
        image[mask] = level[name]
    for mask in organ_masks:
        image[mask] = rng.uniform(0.32, 0.60)
    inside = ~tissues[AIR]
    image *= 1.0 + inside * (_smooth(rng, image.shape, 8, 0.05) + rng.normal(0.0, 0.04, image.shape))
    image *= np.exp(_smooth(rng, image.shape, 3, 0.25))  # coil sensitivity
    image = ndimage.gaussian_filter(image, 0.4)
    sigma = rng.uniform(0.01, 0.03)
    image = np.hypot(image + rng.normal(0.0, sigma, image.shape), rng.normal(0.0, sigma, image.shape))
    if rng.random() < 0.5:
        image[_outside_scanner(rng, image.shape)] = 0.0
    return np.asarray(image * 10.0 ** rng.uniform(1.5, 3.5), np.float32)

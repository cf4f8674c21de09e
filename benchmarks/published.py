"""vox2vec's published algorithm (MICCAI 2023), in our words and in the plainest form: what we compare with.

Everything is done as it is described: a whole case in memory, a list of all body voxels, shifted to either patch to see
which of them both hold; views augmented one by one; levels read patch by patch; the loss from its matrices. Arrays are
(z, y, x); a patch is axial x in-plane x in-plane.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

MOST_POINTS = 1024


def draw_pairs(
    image: np.ndarray, body: np.ndarray, patch: Sequence[int], pairs: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of crops of a volume and up to 1,024 voxels that both hold: crop, crop, voxels (n, 3) in either."""
    voxels = np.argwhere(body)
    size = np.asarray(patch)
    for _ in range(pairs):
        anchor = voxels[rng.integers(len(voxels))]
        starts, own = [], []
        for _ in range(2):
            low = np.maximum(anchor - size + 1, 0)
            high = np.minimum(anchor, np.asarray(image.shape) - size)
            start = rng.integers(low, high + 1)
            starts.append(start)
            own.append(voxels - start)  # every voxel of the body, in the patch's frame
        inside = np.all([((v >= 0) & (v < size)).all(1) for v in own], axis=0)
        shared = np.flatnonzero(inside)
        chosen = rng.choice(shared, min(MOST_POINTS, len(shared)), replace=False)
        crops = [image[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))].copy() for start in starts]
        yield crops[0], crops[1], own[0][chosen], own[1][chosen]


def augment(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur or sharpen in the axial plane, noise, window; HU in, [0, 1] out."""
    if rng.random() < 0.5:
        if rng.random() < 0.5:
            sigma = rng.uniform(0.25, 1.5)
            view = ndimage.gaussian_filter(view, (0, sigma, sigma))
        else:
            sigma = rng.uniform(0.5, 1.0)
            blurred = ndimage.gaussian_filter(view, (0, sigma, sigma))
            view = blurred + rng.uniform(10, 30) * (blurred - ndimage.gaussian_filter(blurred, (0, 0.5, 0.5)))
    if rng.random() < 0.5:
        view = view + rng.normal(0, rng.uniform(0, 30), view.shape).astype(view.dtype)
    low, high = (rng.uniform(-1350, -1000), rng.uniform(300, 1000)) if rng.random() < 0.8 else (-1350, 1000)
    return np.clip((view - low) / (high - low), 0, 1).astype(np.float32)


def batch(
    image: np.ndarray, body: np.ndarray, patch: Sequence[int], pairs: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Views a and b (B, 1, *patch), and for each pair its voxels (n, 3) in a and in b. image is in HU."""
    drawn = list(draw_pairs(image, body, patch, pairs, rng))
    a, b = (torch.from_numpy(np.stack([augment(pair[i], rng) for pair in drawn])[:, None]) for i in (0, 1))
    return a, b, [torch.from_numpy(pair[2]) for pair in drawn], [torch.from_numpy(pair[3]) for pair in drawn]


def read(levels: Sequence[Tensor], voxels: Sequence[Tensor]) -> Tensor:
    """Voxel vectors (sum of n, sum of C_l): each patch's voxels, divided by two a level, index its maps."""
    rows = []
    for i, points in enumerate(voxels):
        parts = []
        for number, level in enumerate(levels):
            z, y, x = (points // 2**number).T
            parts.append(level[i, :, z, y, x].T)
        rows.append(torch.cat(parts, 1))
    return torch.cat(rows)


def info_nce(z_a: Tensor, z_b: Tensor, temperature: float = 0.1) -> Tensor:
    """The three blocks of similarities; a point's similarity to itself is left out of its denominator."""
    aa, ab, bb = z_a @ z_a.T / temperature, z_a @ z_b.T / temperature, z_b @ z_b.T / temperature
    own = torch.eye(len(z_a), dtype=torch.bool, device=z_a.device)
    denominator_a = torch.cat([aa.masked_fill(own, -torch.inf), ab], 1).logsumexp(1)
    denominator_b = torch.cat([bb.masked_fill(own, -torch.inf), ab.T], 1).logsumexp(1)
    return ((denominator_a + denominator_b) / 2 - ab.diagonal()).mean()

"""Drawing a voxel of a volume's foreground, without listing the foreground. Frame: see ``nnunet_ssl.geometry``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Reader = Callable[[Ints, Ints], NDArray[np.generic]]
"""read(start (D,), size (D,)) -> the box start ... start + size - 1 of a volume, inside it"""


def draw_anchor(
    rng: np.random.Generator,
    shape: Sequence[int],
    read_mask: Reader,
    counts: Callable[[], Ints] | None = None,
    tries: int = 48,
) -> Ints:
    """(D,) a voxel drawn uniformly from the mask without listing it: random voxels are looked up until one is in the
    mask; after `tries` misses (a mask of a few per cent) a slice is drawn by how much of the mask it holds, then a
    voxel of it. counts() -> (S_0,) foreground voxels of every slice, for a caller that keeps them; None counts anew.

    Raises ValueError where the mask is empty.
    """
    one = np.ones(len(shape), dtype=np.int64)
    for _ in range(tries):
        voxel: Ints = rng.integers(0, np.asarray(shape))
        if read_mask(voxel, one).any():
            return voxel
    held = count_slices(shape, read_mask) if counts is None else counts()
    if not held.any():
        raise ValueError(f"no foreground voxel in a volume of shape {tuple(shape)}")
    start = 0 * one
    start[0] = rng.choice(len(held), p=held / held.sum())
    size = np.asarray([1, *shape[1:]], dtype=np.int64)
    inside = np.flatnonzero(read_mask(start, size))
    return start + np.asarray(np.unravel_index(rng.choice(inside), tuple(size)), dtype=np.int64)


def count_slices(shape: Sequence[int], read_mask: Reader, thickness: int = 16) -> Ints:
    """(S_0,) the mask's true voxels in every slice of the first axis; `thickness` slices are in memory at a time."""
    counts = []
    for first in range(0, shape[0], thickness):
        start = np.asarray([first, *[0] * (len(shape) - 1)], dtype=np.int64)
        size = np.asarray([min(thickness, shape[0] - first), *shape[1:]], dtype=np.int64)
        slab = np.asarray(read_mask(start, size))
        counts.append(np.count_nonzero(slab.reshape(len(slab), -1), axis=1))
    return np.concatenate(counts).astype(np.int64)

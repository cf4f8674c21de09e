"""Sliding windows over a volume: where they start, which voxels each one owns, how a window that sticks out is padded.

Frame: voxel indices in array order (z, y, x in 3d; y, x in 2d), voxel centres at integers. Every voxel of the volume is
owned by exactly one window, the one whose centre is nearest: what a network says about a voxel is read where it sees
the most context, and no voxel is counted twice.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch

LevelsOf = Callable[[torch.Tensor], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Window:
    """A window and the box of voxels that it owns.

    start: first voxel of the window, one int per axis; negative where the volume is smaller than the window (padding).
    core:  (first, past the last) voxel owned, per axis, in the volume's indices; always inside the volume.
    """

    start: tuple[int, ...]
    core: tuple[tuple[int, int], ...]

    def core_slices(self) -> tuple[slice, ...]:
        """The core as slices into the volume's spatial axes."""
        return tuple(slice(lo, hi) for lo, hi in self.core)

    def local_slices(self) -> tuple[slice, ...]:
        """The core as slices into the window's own grid."""
        return tuple(slice(lo - s, hi - s) for s, (lo, hi) in zip(self.start, self.core, strict=True))


def axis_starts(size: int, patch: int, step: float = 0.5, offset: int = 0) -> list[int]:
    """Window starts along one axis of `size` voxels, at most `step * patch` apart, increasing, the ends included.

    They are evenly spaced, as nnU-Net's: no two windows see almost the same. An axis shorter than the patch has one
    centred (negative) start. `offset` > 0 shifts the inner starts, so that repeated passes see a voxel at other places
    of the network's grid; the last gap takes what is left.
    """
    if size <= patch:
        return [-((patch - size) // 2)]
    stride = max(1, int(patch * step))
    last = size - patch
    if not offset % stride:
        return np.linspace(0, last, -(-last // stride) + 1).round().astype(int).tolist()
    inner = range(-(offset % stride), last, stride)
    return sorted({min(max(start, 0), last) for start in inner} | {0, last})


def axis_cores(starts: Sequence[int], patch: int, size: int) -> list[tuple[int, int]]:
    """The interval that each window owns along one axis: borders lie midway between neighbouring centres."""
    borders = [0] + [(a + b + patch + 1) // 2 for a, b in pairwise(starts)] + [size]
    return list(pairwise(borders))


def windows(shape: Sequence[int], patch_size: Sequence[int], step: float = 0.5,
            offsets: Sequence[int] | None = None) -> list[Window]:
    """All windows of a volume of spatial `shape`; their cores partition it. `step` is in patches (0 < step <= 1)."""
    if not 0 < step <= 1:
        raise ValueError(f"step is {step}; expected a fraction of the patch in (0, 1]")
    offsets = offsets if offsets is not None else [0] * len(shape)
    axes = []
    for size, patch, offset in zip(shape, patch_size, offsets, strict=True):
        starts = axis_starts(int(size), int(patch), step, int(offset))
        axes.append(list(zip(starts, axis_cores(starts, int(patch), int(size)), strict=True)))
    return [Window(tuple(s for s, _ in cell), tuple(c for _, c in cell)) for cell in product(*axes)]


def read_window(image: Any, window: Window, patch_size: Sequence[int]) -> torch.Tensor:
    """The window of `image` (C, *S) (array, tensor or blosc2 array; only the window is read) -> float (C, *patch).

    What lies outside the volume is 0, the value with which nnU-Net pads preprocessed images.
    """
    inside = tuple(slice(max(s, 0), min(s + int(p), int(n)))
                   for s, p, n in zip(window.start, patch_size, image.shape[1:], strict=True))
    block = image[(slice(None), *inside)]
    tensor = block if isinstance(block, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(block))
    patch = torch.zeros((int(image.shape[0]), *(int(p) for p in patch_size)), dtype=torch.float32)
    place = tuple(slice(i.start - s, i.stop - s) for s, i in zip(window.start, inside, strict=True))
    patch[(slice(None), *place)] = tensor.to(device="cpu", dtype=torch.float32)
    return patch


def lift(levels_of: LevelsOf, strides: Sequence[Sequence[int]], patch_size: Sequence[int],
         num_axes: int = 3) -> tuple[LevelsOf, list[tuple[int, ...]], tuple[int, ...]]:
    """Let a 2d network read (z, y, x) volumes slice by slice: windows one voxel thick along z, strides 1 there.

    levels_of maps (B, C, *patch) to levels (B, C_l, *S_l). Returned as they are where the patch has `num_axes` axes.
    """
    patch, steps = tuple(int(p) for p in patch_size), [tuple(int(s) for s in stride) for stride in strides]
    if len(patch) == num_axes:
        return levels_of, steps, patch
    if len(patch) != num_axes - 1:
        raise ValueError(f"the patch has {len(patch)} axes; expected {num_axes} or {num_axes - 1}")

    def slice_levels(x: torch.Tensor) -> list[torch.Tensor]:
        return [level.unsqueeze(2) for level in levels_of(x.squeeze(2))]

    return slice_levels, [(1, *stride) for stride in steps], (1, *patch)

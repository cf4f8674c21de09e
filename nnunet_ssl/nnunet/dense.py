"""Pyramid vectors of a whole volume by sliding window: at chosen voxels, or everywhere.

Frame: preprocessed arrays (C, z, y, x), voxel centres at integers. Coarser levels are read nearest, as the linear head
does (index // stride), so that a dense map holds exactly the vectors that a classifier on the pyramid sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_ssl.nnunet.pyramid_of import pyramid_levels
from nnunet_ssl.nnunet.windows import LevelsOf, Window, lift, read_window, windows
from nnunet_ssl.pyramid import gather, upsample_nearest


def pick_levels(channels: Sequence[Any], levels: Sequence[int] | None) -> list[int]:
    """The levels asked for, all of them for None. Raises ValueError for a level that the pyramid does not have."""
    chosen = list(range(len(channels))) if levels is None else [int(level) for level in levels]
    wrong = [level for level in chosen if not 0 <= level < len(channels)]
    if wrong or not chosen:
        raise ValueError(f"levels {wrong or chosen} asked for; the pyramid has 0 (finest) to {len(channels) - 1}")
    return chosen


def levels_reader(network: nn.Module) -> LevelsOf:
    """The function of a network that gives its levels, uncompiled: a compiled one is bound to the training's shapes."""
    method = getattr(type(network), "levels", None)
    if method is None:
        return lambda x: pyramid_levels(network, x)
    return lambda x: list(method(network, x))


@torch.no_grad()
def vectors_at(
    levels_of: LevelsOf,
    strides: Sequence[Sequence[int]],
    image: Any,
    patch_size: Sequence[int],
    points: np.ndarray,
    *,
    step: float = 0.5,
    stitch: str = "core",
    reading: str = "nearest",
    device: torch.device | str = "cpu",
) -> Tensor:
    """Vectors (n, sum C_l) float32 on the CPU at integer `points` (n, 3) of `image` (C, z, y, x).

    stitch: "core" reads each point in the window whose centre is nearest; "gaussian" averages over all windows that
    hold it, with nnU-Net's weights: smoother, for pictures. reading: of the levels, see ``pyramid.gather``. Windows
    without a point are not computed. levels_of maps (1, C, *patch) on `device` to levels, finest first; a 2d network is
    run slice by slice.
    """
    levels_of, strides, patch = lift(levels_of, strides, patch_size)
    weights = _gaussian(patch) if stitch == "gaussian" else None
    total: Tensor | None = None
    norm = torch.zeros(len(points), 1)
    for window, rows in _windows_with_points(windows(image.shape[1:], patch, step), points, patch, stitch):
        levels = levels_of(read_window(image, window, patch)[None].to(device))
        local = torch.from_numpy(points[rows] - np.asarray(window.start))
        coords = local.to(device=device, dtype=torch.float32)[None]
        read = gather([level.float() for level in levels], strides, coords, reading)[0].cpu()  # (m, sum C_l)
        weight = torch.ones(len(rows), 1) if weights is None else weights[tuple(local.long().T)][:, None]
        if total is None:
            total = torch.zeros(len(points), read.shape[1])
        total[torch.from_numpy(rows)] += weight * read
        norm[torch.from_numpy(rows)] += weight
    if total is None:
        raise ValueError(f"no point lies inside the volume of shape {tuple(image.shape[1:])}")
    return total / norm.clamp_min(torch.finfo(norm.dtype).tiny)


def _windows_with_points(
    cells: Sequence[Window], points: np.ndarray, patch: Sequence[int], stitch: str
) -> list[tuple[Window, np.ndarray]]:
    """Every window that owns points ("gaussian": that holds points), with their row numbers."""
    found = []
    for window in cells:
        start = np.asarray(window.start)
        low, high = (start, start + np.asarray(patch)) if stitch == "gaussian" else np.asarray(window.core).T
        rows = np.flatnonzero(((points >= low) & (points < high)).all(1))
        if len(rows):
            found.append((window, rows))
    return found


@torch.no_grad()
def dense_map(
    function: Callable[[Tensor], Tensor],
    image: Any,
    patch_size: Sequence[int],
    *,
    step: float = 0.5,
    stitch: str = "core",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Callable[[Sequence[Window]], Any] = iter,
) -> Tensor:
    """Stitch function((1, C, *patch)) -> (1, K, *patch) over `image` (C, z, y, x) into (K, z, y, x) on the CPU.

    stitch: "core" takes every voxel from the window whose centre is nearest (sums nothing, so `dtype` may be float16);
    "gaussian" averages overlapping windows with nnU-Net's weights, in float32 before the cast to `dtype`.
    """
    if stitch not in ("core", "gaussian"):
        raise ValueError(f"stitch is {stitch!r}; expected 'core' or 'gaussian'")
    patch = tuple(int(p) for p in patch_size)
    shape = tuple(int(n) for n in image.shape[1:])
    weight = _gaussian(patch) if stitch == "gaussian" else None
    total, norm = None, torch.zeros(shape)
    for window in progress(windows(shape, patch, step)):
        values = function(read_window(image, window, patch)[None].to(device))[0].cpu()  # (K, *patch)
        if total is None:
            total = torch.zeros((len(values), *shape), dtype=dtype if weight is None else torch.float32)
        if weight is None:
            total[(slice(None), *window.core_slices())] = values[(slice(None), *window.local_slices())].to(dtype)
            continue
        volume, local = _overlap(window, patch, shape)
        total[(slice(None), *volume)] += (values.float() * weight)[(slice(None), *local)]
        norm[volume] += weight[local]
    assert total is not None  # a volume has at least one window
    return total if weight is None else total.div_(norm).to(dtype)


def _gaussian(patch: tuple[int, ...]) -> Tensor:
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    weight: Tensor = compute_gaussian(patch, dtype=torch.float32, device=torch.device("cpu"))
    return weight


def _overlap(
    window: Window, patch: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of a window inside the volume: slices into the volume and into the window."""
    low = [max(s, 0) for s in window.start]
    high = [min(s + p, n) for s, p, n in zip(window.start, patch, shape, strict=True)]
    volume = tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))
    local = tuple(slice(lo - s, hi - s) for lo, hi, s in zip(low, high, window.start, strict=True))
    return volume, local


def dense_features(
    levels_of: LevelsOf,
    strides: Sequence[Sequence[int]],
    image: Any,
    patch_size: Sequence[int],
    *,
    levels: Sequence[int] | None = None,
    **stitching: Any,
) -> Tensor:
    """The chosen levels' features of every voxel of `image` (C, z, y, x) -> (sum C_l, z, y, x).

    levels: numbers of the levels, 0 the finest; None for all. stitching: see `dense_map`.
    """
    levels_of, strides, patch = lift(levels_of, strides, patch_size)
    chosen = pick_levels(strides, levels)

    def full_resolution(x: Tensor) -> Tensor:
        maps = levels_of(x)
        return torch.cat([upsample_nearest(maps[i], strides[i], x.shape[2:]) for i in chosen], dim=1)

    return dense_map(full_resolution, image, patch, **stitching)

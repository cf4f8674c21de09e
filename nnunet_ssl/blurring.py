"""Gaussian blurs, every image by its own: batched torch functions for the intensities of all objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK = 32
"""Voxels of an axis that a CPU blurs by one product: shorter blocks have fewer zeros in the band, and more calls."""


def gaussian(x: Tensor, sigma: Tensor, axes: Sequence[int], radius: int) -> Tensor:
    """Blur each of M images by its own Gaussian: x (M, *S), sigma (M,) voxels, axes of S -> (M, *S).

    Kernels have 2 radius + 1 taps and sum to one; beyond its border an image goes on with its border voxel. A sigma of
    0 changes nothing.
    """
    taps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (taps / sigma.to(x.dtype).clamp(min=1e-3)[:, None]) ** 2)  # (M, taps)
    weights = weights / weights.sum(1, keepdim=True)
    for axis in axes:
        x = (_by_blocks if x.device.type == "cpu" else _by_shifts)(x, weights, axis)
    return x


def _by_shifts(x: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Blur (M, *S) along an axis of S as a sum of shifted images: half the time of a grouped convolution."""
    size, reach = x.shape[axis + 1], weights.shape[1] // 2
    index = torch.arange(-reach, size + reach, device=x.device).clamp(0, size - 1)
    padded = x.index_select(axis + 1, index)
    weights = weights.view(*weights.shape, *[1] * (x.ndim - 1))
    x = padded.narrow(axis + 1, 0, size) * weights[:, 0]
    for tap in range(1, weights.shape[1]):
        x.addcmul_(padded.narrow(axis + 1, tap, size), weights[:, tap])
    return x


def _by_blocks(x: Tensor, weights: Tensor, axis: int) -> Tensor:
    """The same as products with the blocks of a band matrix: more arithmetic, which a CPU has to spare, for one walk
    over memory; at most two thirds of the time of the whole matrix.
    """
    size, reach = x.shape[axis + 1], weights.shape[1] // 2
    index = torch.arange(size)[:, None] + torch.arange(-reach, reach + 1)  # (S, taps)
    index = index.clamp(0, size - 1).expand(len(x), -1, -1)
    matrix = x.new_zeros(len(x), size, size)
    matrix.scatter_add_(2, index, weights[:, None].expand(-1, size, -1))
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    inside = math.prod(x.shape[axis + 2 :])
    with torch.autocast("cpu", enabled=False):
        for image, result, own in zip(x, out, matrix, strict=True):
            source, target = (t.reshape(-1, size, inside) for t in (image, result))
            for start in range(0, size, _BLOCK):
                rows, columns = slice(start, start + _BLOCK), slice(max(0, start - reach), start + _BLOCK + reach)
                if inside == 1:
                    torch.mm(source[:, columns, 0], own[rows, columns].T, out=target[:, rows, 0])
                else:
                    target[:, rows] = torch.matmul(own[rows, columns], source[:, columns])
    return out


def radius(sigma: float) -> int:
    """Taps of a Gaussian on either side: beyond four sigma it is nothing."""
    return max(1, math.ceil(4 * sigma))


def blur(x: Tensor, sigma: Tensor, axes: Sequence[int], largest_sigma: float) -> Tensor:
    """A copy of views (B, C, *S), those with sigma (B, C) > 0 blurred along `axes` of S.

    largest_sigma: of those that could be drawn; it sets the number of taps.
    """
    x = x.clone(memory_format=torch.contiguous_format)
    flat, sigma = x.flatten(0, 1), sigma.flatten().to(x)
    chosen = (sigma > 0).nonzero().squeeze(1)
    if len(chosen):
        put(flat, chosen, gaussian(flat.index_select(0, chosen), sigma[chosen], axes, radius(largest_sigma)))
    return x


def put(images: Tensor, places: Tensor, values: Tensor) -> None:
    """images[places] = values along the first axis: whole images are copied; an assignment goes voxel by voxel."""
    for place, value in zip(places.tolist(), values, strict=True):
        images[place].copy_(value)


def blur_axes(ndim: int, axial_axis: int | None) -> list[int]:
    """Axes of a view along which it is blurred: both in 2D; in 3D all but the axial one (None: all)."""
    return [axis for axis in range(ndim) if ndim == 2 or axis != axial_axis]

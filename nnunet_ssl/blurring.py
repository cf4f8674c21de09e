"""Gaussian blurs, every image by its own: batched torch functions for the intensities of all objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_ssl.tiles import outer_product

_LONGEST = 256
"""Voxels of an axis up to which a CPU blurs by a matrix: twice as fast as by shifts at 128."""


def gaussian(x: Tensor, sigma: Tensor, axes: Sequence[int], radius: int) -> Tensor:
    """Blur each of M images by its own Gaussian: x (M, *S), sigma (M,) voxels, axes of S -> (M, *S).

    Kernels have 2 radius + 1 taps and sum to one; beyond its border an image goes on with its border voxel. A sigma of
    0 changes nothing.
    """
    taps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (taps / sigma.to(x.dtype).clamp(min=1e-3)[:, None]) ** 2)  # (M, taps)
    weights = weights / weights.sum(1, keepdim=True)
    for axis in axes:
        along = _by_matrix if x.device.type == "cpu" and x.shape[axis + 1] <= _LONGEST else _by_shifts
        x = along(x, weights, axis)
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


def _by_matrix(x: Tensor, weights: Tensor, axis: int) -> Tensor:
    """The same as a product with a band matrix: more arithmetic, which a CPU has to spare, and one walk over memory."""
    size, reach = x.shape[axis + 1], weights.shape[1] // 2
    index = torch.arange(size)[:, None] + torch.arange(-reach, reach + 1)  # (S, taps)
    index = index.clamp(0, size - 1).expand(len(x), -1, -1)
    matrix = x.new_zeros(len(x), size, size)
    matrix.scatter_add_(2, index, weights[:, None].expand(-1, size, -1))
    with torch.autocast("cpu", enabled=False):
        if axis == x.ndim - 2:
            parts = [outer_product(image.reshape(-1, size), own) for image, own in zip(x, matrix, strict=True)]
            return torch.stack(parts).view(x.shape)
        before = math.prod(x.shape[1 : axis + 1])
        return torch.matmul(matrix[:, None], x.reshape(len(x), before, size, -1)).view(x.shape)


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
        put(flat, chosen, gaussian(flat[chosen], sigma[chosen], axes, radius(largest_sigma)))
    return x


def put(images: Tensor, places: Tensor, values: Tensor) -> None:
    """images[places] = values along the first axis: whole images are copied; an assignment goes voxel by voxel."""
    for place, value in zip(places.tolist(), values, strict=True):
        images[place].copy_(value)


def blur_axes(ndim: int, axial_axis: int | None) -> list[int]:
    """Axes of a view along which it is blurred: both in 2D; in 3D all but the axial one (None: all)."""
    return [axis for axis in range(ndim) if ndim == 2 or axis != axial_axis]

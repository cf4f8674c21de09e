"""Pix2Rep's pair of views, finished on the training device: warped, given intensities, their shared points drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl import elastic
from nnunet_ssl.blending import ravel
from nnunet_ssl.phi import Sample, knots
from nnunet_ssl.stacking import stack_boxes
from nnunet_ssl.views import OnDevice, ViewPair
from nnunet_ssl.warp import move, positions, read, warp

if TYPE_CHECKING:
    from nnunet_ssl.objectives.pix2rep import Recipe

TOLERANCE = 1e-3  # voxels: what single precision makes of a point on the border of a view


@dataclass
class PhiBatch(OnDevice):
    """What travels from the workers to the training device (see ``nnunet_ssl.phi.PhiGeometry``)."""

    box: Tensor  # (B, C, *box) float32
    mask: Tensor  # (B, *box) bool
    bounds: Tensor  # (B, 2, D) float32
    map_a: Tensor  # (B, D+1, D+1) float32, voxel of a -> voxel of the box
    psi: Tensor  # (B, D+1, D+1) float32, voxel of b, bent -> voxel of a
    control: Tensor  # (B, D, *lattice) float32


def collate(samples: Iterable[Sample], count: int | None = None) -> PhiBatch:
    """Stack samples into tensors. count: of samples, where those are no sequence."""
    drawn, (box,) = stack_boxes(samples, count)
    columns = {
        name: np.stack([getattr(g, name) for g in drawn]) for name in ("mask", "bounds", "map_a", "psi", "control")
    }
    tensors = {name: torch.as_tensor(c, dtype=torch.bool if name == "mask" else torch.float32)
               for name, c in columns.items()}  # fmt: skip
    return PhiBatch(box=box, **tensors)


def assemble(
    batch: PhiBatch,
    patch: Sequence[int],
    recipe: Recipe,
    enhance: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> ViewPair:
    """Make both views on the batch's device, change their intensities by `enhance` (each call draws anew), and draw the
    points that are compared with `generator`, which has to be of that device.
    """
    in_a = places(batch, patch, recipe)  # (B, *patch, D)
    in_box = move(batch.map_a, in_a)
    a, b = warp(batch.box, batch.map_a, patch), read(batch.box, in_box)
    if enhance is not None:
        a, b = enhance(a), enhance(b)
    shared = visible(batch, in_a, in_box, patch) if recipe.mask_invalid else in_a.new_ones(in_a.shape[:-1]).bool()
    chosen, valid = draw_points(shared.flatten(1), recipe.points(patch), generator)
    coords_a = in_a.flatten(1, -2).gather(1, chosen[..., None].expand(-1, -1, len(patch)))
    if recipe.mask_invalid:  # what tolerance let in
        coords_a = coords_a.clamp_min(0).minimum(coords_a.new_tensor(patch) - 1)
    return ViewPair(a, b, coords_a, unravel(chosen, patch), valid)


def places(batch: PhiBatch, patch: Sequence[int], recipe: Recipe) -> Tensor:
    """psi of every voxel of b: (B, *patch, D) voxels of a."""
    affine = positions(batch.psi, patch)
    if recipe.elastic_p == 0:
        return affine
    axes = [torch.arange(size) for size in patch]
    moves = elastic.displacement(batch.control, axes, knots(patch, recipe))
    return affine + move(batch.psi, moves, shift=False)


def visible(batch: PhiBatch, in_a: Tensor, in_box: Tensor, patch: Sequence[int]) -> Tensor:
    """(B, *patch) bool: whether a voxel of b is foreground that view a shows, and inside the volume."""
    last = in_a.new_tensor(patch) - 1 + TOLERANCE
    inside = ((in_a >= -TOLERANCE) & (in_a <= last)).all(-1)
    low, high = (batch.bounds[:, i].view(-1, *[1] * len(patch), len(patch)) for i in (0, 1))
    inside &= ((in_box >= low - TOLERANCE) & (in_box <= high + TOLERANCE)).all(-1)
    size = batch.mask.shape[1:]
    nearest = in_box.round().long().clamp_min(0).minimum(torch.tensor(size, device=in_box.device) - 1)
    flat = ravel(nearest, size)
    return inside & batch.mask.flatten(1).gather(1, flat.flatten(1)).view(flat.shape)


def draw_points(shared: Tensor, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Up to `count` true places of each row of shared (B, P), without replacement: their numbers (B, N) and
    valid (B, N), false where a row has too few. All places, in their order, where `count` is not below P.
    """
    if count >= shared.shape[1]:
        return torch.arange(shared.shape[1], device=shared.device).expand(len(shared), -1), shared
    keys = torch.rand(shared.shape, generator=generator, device=shared.device).masked_fill(~shared, -1.0)
    best = keys.topk(count, dim=1)
    return best.indices, best.values >= 0


def unravel(flat: Tensor, shape: Sequence[int]) -> Tensor:
    """Flat voxel numbers (...) of a grid -> (..., D) float32."""
    coords = []
    for size in reversed(shape):
        coords.append(flat % size)
        flat = flat // size
    return torch.stack(coords[::-1], -1).float()

"""Two views of one volume and the points that they share.

A volume is known here by its shape and by two functions that read boxes of it. Drawing happens in numpy, in the
loader's worker processes; warping, flipping and intensities happen in torch, batched, on the training device. Between
the two travel boxes: axis-aligned parts of the volume (an int start, and one size for all views of a run), zero where
they reach out of the volume. A worker makes samples and collates them:

    box = box_size(patch, spacing_mm, recipe)               # once: the size of every box
    def read_mask(start, size): ...                         # -> bool (*size); asked inside the volume only
    def read_image(start, size): ...                        # -> (C, *size); asked inside the volume only
    drawn = draw_pair(rng, shape, patch, spacing_mm, recipe, None, read_mask)     # ValueError: no foreground voxel
    sample = read_pair(drawn, shape, box, read_image, read_mask)            # reads two boxes (C, *box) float32
    batch = collate([sample, ...])                          # PairBatch of CPU tensors

and the training process finishes them:

    units = [ChannelUnits("hu", mean, std)]                 # nnunet_ssl.intensity
    enhance = lambda views: augment(views, units, recipe, generator)              # a torch.Generator of the device
    pair = assemble(batch.to(device, non_blocking=True), patch, recipe, enhance, generator)  # ViewPair
    loss, terms, embeddings = step(network, pair, recipe)   # nnunet_ssl.step

2D is the same with slices: shape, patch and spacing have two numbers. With ``recipe.spatial == "none"`` a box *is* the
view (flips aside): nothing is interpolated and coordinates are exact integers. With "affine" the box is larger and the
device reads the view from it. Frame: see ``nnunet_ssl.geometry``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_ssl import geometry
from nnunet_ssl.anchors import Reader, draw_anchor
from nnunet_ssl.drawing import PairGeometry, box_size, draw_pair, draw_shared, draw_starts, read_box
from nnunet_ssl.stacking import stack_boxes
from nnunet_ssl.warp import mirror, warp

if TYPE_CHECKING:
    from nnunet_ssl.objectives.vox2vec import Recipe

__all__ = [
    "PairBatch", "PairGeometry", "Sample", "ViewPair", "assemble", "box_size", "collate", "draw_anchor", "draw_pair",
    "draw_shared", "draw_starts", "mirror", "read_box", "read_pair", "render", "warp",
]

T = TypeVar("T", bound="OnDevice")


class OnDevice:
    """Moves all tensors of a dataclass at once."""

    def to(self: T, device: torch.device | str, non_blocking: bool = False) -> T:
        """A copy with every tensor on `device`."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self: T) -> T:
        """A copy in page-locked memory."""
        return self._map(lambda x: x.pin_memory())

    def _map(self: T, change: Callable[[Tensor], Tensor]) -> T:
        return type(self)(**{name: change(tensor) for name, tensor in vars(self).items()})


@dataclass
class ViewPair(OnDevice):
    """Two views of each of B volumes, and N places that they share (D = 2 or 3 spatial axes)."""

    a: Tensor  # (B, C, *S) float, in the plan's normalised units
    b: Tensor  # (B, C, *S)
    coords_a: Tensor  # (B, N, D) float: the points in the grid of a, in voxels
    coords_b: Tensor  # (B, N, D) float: the same points in the grid of b
    valid: Tensor  # (B, N) bool: false where a point does not exist

    def flat(self) -> Tensor:
        """(M,) indices of the valid points in (B * N) rows."""
        return self.valid.flatten().nonzero().squeeze(1)


@dataclass
class PairBatch(OnDevice):
    """What travels from the workers to the training device."""

    box_a: Tensor  # (B, C, *box) float32
    box_b: Tensor
    map_a: Tensor  # (B, D+1, D+1) float32, voxel of view a -> voxel of box a
    map_b: Tensor
    coords_a: Tensor  # as in ViewPair
    coords_b: Tensor
    valid: Tensor


Sample = tuple[PairGeometry, NDArray[np.float32], NDArray[np.float32]]


def read_pair(
    drawn: PairGeometry, shape: Sequence[int], size: Sequence[int], read_image: Reader, read_mask: Reader
) -> Sample:
    """What was drawn, with the two boxes of `size` that the views are made from. The mask is not needed any more."""
    a, b = (read_box(read_image, shape, start, size) for start in (drawn.start_a, drawn.start_b))
    return drawn, a, b


def collate(samples: Iterable[Sample], count: int | None = None) -> PairBatch:
    """Stack samples (geometry, box of a, box of b) into tensors; the maps then lead into the boxes. count: of samples,
    where those are no sequence.
    """
    drawn, (box_a, box_b) = stack_boxes(samples, count)

    def stack(arrays: Sequence[NDArray[np.generic]], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.as_tensor(np.stack(arrays), dtype=dtype)

    return PairBatch(
        box_a=box_a,
        box_b=box_b,
        map_a=stack([geometry.compose(geometry.translation(-g.start_a), g.map_a) for g in drawn]),
        map_b=stack([geometry.compose(geometry.translation(-g.start_b), g.map_b) for g in drawn]),
        coords_a=stack([g.coords_a for g in drawn]),
        coords_b=stack([g.coords_b for g in drawn]),
        valid=stack([g.valid for g in drawn], torch.bool),
    )


def render(box: Tensor, to_box: Tensor, patch: Sequence[int], recipe: Recipe) -> Tensor:
    """Views (B, C, *patch) from their boxes (B, C, *box) and the maps (B, D+1, D+1) from view to box voxels."""
    if recipe.spatial == "none":
        diagonal = to_box.diagonal(dim1=1, dim2=2)[:, :-1]  # (B, D) -1 where mirrored
        return mirror(box, diagonal < 0) if recipe.flip_axes else box
    return warp(box, to_box, patch, "linear")


def assemble(
    batch: PairBatch,
    patch: Sequence[int],
    recipe: Recipe,
    enhance: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> ViewPair:
    """Make the views on the batch's device: warp or mirror the boxes, then change their intensities by `enhance`
    (each call draws anew). Nothing else is random here: the generator is not used."""
    a = render(batch.box_a, batch.map_a, patch, recipe)
    b = render(batch.box_b, batch.map_b, patch, recipe)
    if enhance is not None:
        a, b = enhance(a), enhance(b)
    return ViewPair(a, b, batch.coords_a, batch.coords_b, batch.valid)

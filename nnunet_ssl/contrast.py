"""Pix2Rep's intensities (published code): noise, blur, gamma, bias field, inversion; pure, batched torch functions.

Every view and every channel has its own parameters, tensors (B, C). Views enter and leave in the plan's normalised
units. Gamma, bias field and inversion act on the view stretched to [0, 1], and it is taken back by the same minimum and
maximum. In 3D nothing is blurred along the axial axis: the paper's images are slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnunet_ssl.blurring import blur, blur_axes
from nnunet_ssl.intensity import ChannelUnits, chance, noise_field, uniform, wide

if TYPE_CHECKING:
    from nnunet_ssl.objectives.pix2rep import Recipe

BIAS_ORDER = 3  # total degree of the bias field's polynomial


@dataclass
class Contrast:
    """(B, C) each, bias (B, C, 4, ..., 4)."""

    noise: Tensor  # standard deviation, normalised units
    blur: Tensor  # sigma in voxels, 0: none
    gamma: Tensor  # exponent, 1: none
    bias: Tensor  # coefficient of z^i y^j x^k at [i, j, k], 0: none
    inverted: Tensor  # bool


def draw_contrast(generator: torch.Generator, shape: Sequence[int], ndim: int, recipe: Recipe) -> Contrast:
    """Parameters for views of `ndim` axes; shape (B, C). They lie on the generator's device."""
    noise = chance(generator, shape, recipe.noise_p) * uniform(generator, shape, recipe.noise_std)
    sigma = chance(generator, shape, recipe.blur_p) * uniform(generator, shape, recipe.blur_sigma)
    log_gamma = chance(generator, shape, recipe.gamma_p) * uniform(generator, shape, recipe.log_gamma)
    biased = chance(generator, shape, recipe.bias_p)
    powers = torch.arange(BIAS_ORDER + 1, device=generator.device)
    degree = torch.stack(torch.meshgrid(*[powers] * ndim, indexing="ij")).sum(0)  # (4, ..., 4)
    most = recipe.bias_coefficient
    coefficients = uniform(generator, (*shape, *degree.shape), (-most, most)) * (degree <= BIAS_ORDER)
    inverted = chance(generator, shape, recipe.inversion_p)
    return Contrast(noise, sigma, log_gamma.exp(), wide(biased, coefficients) * coefficients, inverted)


def bias_field(coefficients: Tensor, shape: Sequence[int]) -> Tensor:
    """exp of a polynomial in coordinates from -1 to 1: coefficients (B, C, 4, ..., 4) -> (B, C, *shape)."""
    field = coefficients
    for axis, size in enumerate(shape, start=2):
        place = torch.linspace(-1, 1, size, device=field.device, dtype=field.dtype)
        powers = place[:, None] ** torch.arange(BIAS_ORDER + 1, device=field.device)  # (size, 4)
        field = (field.movedim(axis, -1).unsqueeze(-2) * powers).sum(-1).movedim(-1, axis)
    return field.exp()


def apply_contrast(x: Tensor, drawn: Contrast, field: Tensor, axes: Sequence[int], largest_sigma: float) -> Tensor:
    """Change views (B, C, *S); field: standard normal noise of their shape; axes of S along which is blurred."""
    spatial = tuple(range(2, x.ndim))
    x = blur(x + wide(drawn.noise, x) * field, drawn.blur, axes, largest_sigma)
    low = x.amin(spatial, keepdim=True)
    extent = x.amax(spatial, keepdim=True) - low
    u = _unit(x) ** wide(drawn.gamma, x)
    u = _unit(u * bias_field(drawn.bias.to(x), x.shape[2:]))
    u = torch.where(wide(drawn.inverted, x) > 0, 1 - u, u)
    return low + extent * u


def _unit(x: Tensor) -> Tensor:
    """Each image stretched to [0, 1]; a constant one becomes 0."""
    spatial = tuple(range(2, x.ndim))
    low = x.amin(spatial, keepdim=True)
    return (x - low) / (x.amax(spatial, keepdim=True) - low).clamp_min(1e-12)


@torch.no_grad()
def augment(
    views: Tensor,
    channels: Sequence[ChannelUnits],
    recipe: Recipe,
    generator: torch.Generator,
    axial_axis: int | None = 0,
) -> Tensor:
    """Give each view (B, C, *S) new intensities -> (B, C, *S), in the plan's normalised units before and after.

    CT and other images are treated alike: the plan has brought them to one scale. generator: of the views' device
    (another one works, and copies its noise there). axial_axis: of S, not blurred in 3D (None: all are).
    Raises ValueError for another number of channels than `channels`.
    """
    if recipe.intensity == "none":
        return views
    if views.shape[1] != len(channels):
        raise ValueError(f"views have {views.shape[1]} channels; expected {len(channels)}")
    drawn = draw_contrast(generator, views.shape[:2], views.ndim - 2, recipe)
    axes = blur_axes(views.ndim - 2, axial_axis)
    return apply_contrast(views, drawn, noise_field(views, generator), axes, recipe.blur_sigma[1])

"""Random intensities of views: pure, batched torch functions of drawn parameters (vox2vec, published code).

Order: blur or sharpen (in the axial plane), noise, then the window (CT, in HU) or gain and shift (all other images).
Every view and every channel has its own parameters: tensors (B, C). Views enter and leave in the plan's normalised
units, those that the network will see in prediction; what is drawn in HU is taken there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnunet_ssl.blurring import blur, blur_axes, gaussian, put, radius

if TYPE_CHECKING:
    from nnunet_ssl.objectives.vox2vec import Recipe

BASE_WINDOW_HU = (-1350.0, 1000.0)
"""Where every drawn window is mapped to, and the window of the views that draw none."""
SHARPEN_SECOND_SIGMA = 0.5
"""Voxels: the second blur of the unsharp mask."""


@dataclass(frozen=True)
class ChannelUnits:
    """How a channel of the preprocessed data is normalised: kind "hu" (a CT: x = (HU - mean) / std) or "zscore"."""

    kind: str
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("hu", "zscore"):
            raise ValueError(f"kind is {self.kind!r}; expected 'hu' or 'zscore'")
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"mean {self.mean} and std {self.std}; expected finite numbers and std > 0")


@dataclass
class Detail:
    """b = G_sigma(x); x' = b + amount (b - G_0.5(b)). (B, C) each; a blur has amount 0, an untouched view both 0."""

    sigma: Tensor  # voxels
    amount: Tensor


@dataclass
class CTParameters:
    """(B, C) each, noise and window in HU."""

    detail: Detail
    noise: Tensor  # standard deviation
    lo: Tensor
    hi: Tensor


@dataclass
class ZScoreParameters:
    """(B, C) each, in units of the normalised image."""

    detail: Detail
    noise: Tensor  # standard deviation
    gain: Tensor
    shift: Tensor


def uniform(generator: torch.Generator, shape: Sequence[int], bounds: Sequence[float]) -> Tensor:
    """U(bounds), on the generator's device."""
    drawn = torch.rand(tuple(shape), generator=generator, device=generator.device)
    return bounds[0] + (bounds[1] - bounds[0]) * drawn


def chance(generator: torch.Generator, shape: Sequence[int], p: float) -> Tensor:
    """True with probability p, on the generator's device."""
    return torch.rand(tuple(shape), generator=generator, device=generator.device) < p


def draw_detail(generator: torch.Generator, shape: Sequence[int], recipe: Recipe) -> Detail:
    """Blur or sharpen, half and half, with ``blur_sharpen_p``; shape (B, C)."""
    active = chance(generator, shape, recipe.blur_sharpen_p)
    sharpen = chance(generator, shape, 0.5)
    blur_sigma = uniform(generator, shape, recipe.blur_sigma)
    sharpen_sigma = uniform(generator, shape, recipe.sharpen_sigma)
    amount = uniform(generator, shape, recipe.sharpen_amount)
    return Detail(active * torch.where(sharpen, sharpen_sigma, blur_sigma), (active & sharpen) * amount)


def draw_ct(generator: torch.Generator, shape: Sequence[int], recipe: Recipe) -> CTParameters:
    """Parameters for CT views; shape (B, C). They lie on the generator's device."""
    detail = draw_detail(generator, shape, recipe)
    noise = chance(generator, shape, recipe.noise_p) * uniform(generator, shape, recipe.noise_hu)
    window = chance(generator, shape, recipe.window_p)
    lo, hi = (uniform(generator, shape, bounds) for bounds in (recipe.window_lo_hu, recipe.window_hi_hu))
    return CTParameters(
        detail,
        noise,
        torch.where(window, lo, BASE_WINDOW_HU[0]),
        torch.where(window, hi, BASE_WINDOW_HU[1]),
    )


def draw_zscore(generator: torch.Generator, shape: Sequence[int], recipe: Recipe) -> ZScoreParameters:
    """Parameters for views in other units than HU; shape (B, C). They lie on the generator's device."""
    detail = draw_detail(generator, shape, recipe)
    noise = chance(generator, shape, recipe.noise_p) * uniform(generator, shape, recipe.noise_z)
    active = chance(generator, shape, recipe.gain_shift_p)
    gain, shift = (uniform(generator, shape, bounds) for bounds in (recipe.gain, recipe.shift))
    return ZScoreParameters(detail, noise, torch.where(active, gain, 1.0), active * shift)


def apply_detail(x: Tensor, detail: Detail, axes: Sequence[int], largest_sigma: float) -> Tensor:
    """Blur or sharpen views (B, C, *S) along `axes` of S; only the views and channels that drew it are touched."""
    x = blur(x, detail.sigma, axes, largest_sigma)
    flat, amount = x.flatten(0, 1), detail.amount.flatten().to(x)
    chosen = (amount > 0).nonzero().squeeze(1)
    if len(chosen):
        blurred = flat.index_select(0, chosen)
        second = torch.full_like(amount[chosen], SHARPEN_SECOND_SIGMA)
        edges = blurred - gaussian(blurred, second, axes, radius(SHARPEN_SECOND_SIGMA))
        put(flat, chosen, edges.mul_(wide(amount[chosen], edges)).add_(blurred))
    return x


def wide(parameter: Tensor, like: Tensor) -> Tensor:
    """A parameter with the trailing axes of an image."""
    return parameter.reshape(*parameter.shape, *[1] * (like.ndim - parameter.ndim)).to(like)


def apply_ct(
    x: Tensor, parameters: CTParameters, field: Tensor | None, axes: Sequence[int], largest_sigma: float,
    base: tuple[Tensor | float, Tensor | float] = BASE_WINDOW_HU,
) -> Tensor:  # fmt: skip
    """Augment CT views (B, C, *S); field: standard normal noise of their shape, None where none drew noise. The result
    is in the units of x: the drawn window, clipped, stretched to `base`.

    Views, noise, windows and `base` (two numbers, or (1, C) each) are all in HU, or all in units that HU become by a
    factor and a shift: everything here is linear but for the clipping, and that goes along.
    """
    x = apply_detail(x, parameters.detail, axes, largest_sigma)  # a copy: changed in place from here on
    if field is not None:
        x.addcmul_(field, wide(parameters.noise, x))
    lo, hi = wide(parameters.lo, x), wide(parameters.hi, x)
    least, greatest = (wide(torch.as_tensor(bound), x) for bound in base)
    gain = (greatest - least) / (hi - lo)
    torch.maximum(x, lo, out=x)  # not clamp_, which takes eight times as long with a tensor
    torch.minimum(x, hi, out=x)
    return x.mul_(gain).add_(least - lo * gain)


def apply_zscore(
    x: Tensor, parameters: ZScoreParameters, field: Tensor | None, axes: Sequence[int], largest_sigma: float
) -> Tensor:
    """Augment views (B, C, *S) that are not CT. What the window's clipping does for a sharpened CT, clipping to the
    view's own range does here, before noise, gain and shift.
    """
    spatial = tuple(range(2, x.ndim))
    least, greatest = x.amin(spatial, keepdim=True), x.amax(spatial, keepdim=True)
    x = apply_detail(x, parameters.detail, axes, largest_sigma)  # a copy: changed in place from here on
    torch.maximum(x, least, out=x)
    torch.minimum(x, greatest, out=x)
    if field is not None:
        x.addcmul_(field, wide(parameters.noise, x))
    return x.mul_(wide(parameters.gain, x)).add_(wide(parameters.shift, x))


def _kinds(channels: Sequence[ChannelUnits], recipe: Recipe) -> list[str]:
    """The kind that each channel is treated as."""
    if recipe.intensity == "auto":
        return [channel.kind for channel in channels]
    found = [i for i, channel in enumerate(channels) if channel.kind != "hu"]
    if recipe.intensity == "hu" and found:
        raise ValueError(f"intensity is 'hu', but channels {found} are not CT; expected 'auto' or 'zscore'")
    return [recipe.intensity] * len(channels)


@torch.no_grad()
def augment(
    views: Tensor,
    channels: Sequence[ChannelUnits],
    recipe: Recipe,
    generator: torch.Generator,
    axial_axis: int | None = 0,
) -> Tensor:
    """Give each view (B, C, *S) new intensities, in the plan's normalised units before and after -> (B, C, *S).

    generator: of the views' device (another one works, and copies its noise there). axial_axis: of S, the one along
    which nothing is blurred in 3D (None: blur along all); 2D views are blurred along both axes.
    Raises ValueError for another number of channels than `channels`, and for ``intensity = "hu"`` on channels that are
    not CT.
    """
    if recipe.intensity == "none":
        return views
    if views.shape[1] != len(channels):
        raise ValueError(f"views have {views.shape[1]} channels; expected {len(channels)}")
    axes = blur_axes(views.ndim - 2, axial_axis)
    largest = max(recipe.blur_sigma[1], recipe.sharpen_sigma[1])
    kinds = _kinds(channels, recipe)
    out = torch.empty_like(views)
    # one view after the other stays in the cache of a CPU, a GPU wants them all at once
    number = len(views) if views.device.type == "cpu" else 1
    parts = zip(views.chunk(number), out.chunk(number), strict=True)
    for view, changed in parts:
        for kind in sorted(set(kinds)):
            index = [i for i, found in enumerate(kinds) if found == kind]
            change = _change_ct if kind == "hu" else _change_zscore
            part = view if len(index) == len(channels) else view[:, index]
            x = change(part, [channels[i] for i in index], recipe, generator, axes, largest)
            for channel, new in zip(index, x.unbind(1), strict=True):
                changed[:, channel].copy_(new)
    return out


def _change_ct(
    x: Tensor, channels: Sequence[ChannelUnits], recipe: Recipe, generator: torch.Generator,
    axes: Sequence[int], largest: float,
) -> Tensor:  # fmt: skip
    drawn = draw_ct(generator, x.shape[:2], recipe)
    field = _noise_for(x, drawn.noise, generator)
    mean = torch.tensor([[c.mean for c in channels]], device=drawn.lo.device)  # (1, C)
    std = torch.tensor([[c.std for c in channels]], device=drawn.lo.device)
    # HU -> the views' units: a few numbers instead of every voxel
    lo, hi = ((bound - mean) / std for bound in (drawn.lo, drawn.hi))
    base = (BASE_WINDOW_HU[0] - mean) / std, (BASE_WINDOW_HU[1] - mean) / std
    return apply_ct(x, CTParameters(drawn.detail, drawn.noise / std, lo, hi), field, axes, largest, base)


def _change_zscore(
    x: Tensor, _: Sequence[ChannelUnits], recipe: Recipe, generator: torch.Generator,
    axes: Sequence[int], largest: float,
) -> Tensor:  # fmt: skip
    parameters = draw_zscore(generator, x.shape[:2], recipe)
    return apply_zscore(x, parameters, _noise_for(x, parameters.noise, generator), axes, largest)


def noise_field(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the shape and on the device of x."""
    return torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)


def _noise_for(x: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor | None:
    """The same, or None where no sigma is above 0; a GPU, which would have to be waited for, always draws."""
    return None if x.device.type == "cpu" and not bool(sigma.any()) else noise_field(x, generator)

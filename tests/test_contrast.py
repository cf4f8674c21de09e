"""Pix2Rep's intensities against a slow float64 port, and what is drawn, by sampling."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from nnunet_ssl import contrast
from nnunet_ssl.intensity import ChannelUnits
from nnunet_ssl.objectives.pix2rep import Recipe

STILL = Recipe(noise_p=0, blur_p=0, gamma_p=0, bias_p=0, inversion_p=0)


def oracle(x, noise, sigma, gamma, bias, inverted, field, axes):
    """One image (*S), the published order: noise, blur, gamma, bias field, rescaling, inversion."""
    x = x + noise * field
    for axis in axes:
        x = gaussian_filter1d(x, sigma, axis=axis, mode="nearest", radius=6) if sigma > 0 else x
    low, high = x.min(), x.max()
    u = ((x - low) / (high - low)) ** gamma
    places = np.meshgrid(*[np.linspace(-1, 1, n) for n in x.shape], indexing="ij")
    exponent = np.zeros(x.shape)
    for powers in np.ndindex(*bias.shape):
        if sum(powers) <= 3:
            exponent += bias[powers] * np.prod([p**k for p, k in zip(places, powers, strict=True)], axis=0)
    u = u * np.exp(exponent)
    u = (u - u.min()) / (u.max() - u.min())
    return low + (high - low) * (1 - u if inverted else u)


@pytest.mark.parametrize("shape", [(12, 15), (6, 9, 11)])
def test_every_step_is_that_of_the_port(shape):
    generator = torch.Generator().manual_seed(0)
    recipe = Recipe(noise_p=0.5, blur_p=0.5, gamma_p=0.5, bias_p=0.5, inversion_p=0.5, log_gamma=[-0.5, 0.5])
    x = torch.randn(16, 2, *shape, generator=generator, dtype=torch.float64)
    drawn = contrast.draw_contrast(generator, (16, 2), len(shape), recipe)
    field = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    axes = [0, 1] if len(shape) == 2 else [1, 2]
    found = contrast.apply_contrast(x, drawn, field, axes, 1.3)
    for b in range(16):
        for c in range(2):
            values = [p[b, c].double().numpy() for p in (drawn.noise, drawn.blur, drawn.gamma, drawn.bias)]
            expected = oracle(x[b, c].numpy(), *values, bool(drawn.inverted[b, c]), field[b, c].numpy(), axes)
            assert np.abs(found[b, c].numpy() - expected).max() < 1e-5


def test_what_is_drawn():
    drawn = contrast.draw_contrast(torch.Generator().manual_seed(0), (5000, 2), 2, Recipe())
    shares = [((p if p.ndim == 2 else p.flatten(2).abs().sum(-1)) != still).float().mean().item() for p, still in
              ((drawn.noise, 0), (drawn.blur, 0), (drawn.gamma, 1), (drawn.bias, 0), (drawn.inverted, 0))]  # fmt: skip
    assert np.allclose(shares, [0.3, 0.5, 0.9, 0.75, 0.35], atol=0.02)
    for values, least, most in ((drawn.noise, 0, 0.5), (drawn.blur, 0, 1.3), (drawn.gamma.log(), -0.05, 0.05),
                                (drawn.bias, -0.9, 0.9)):  # fmt: skip
        used = values[values != 0]
        span = most - least
        assert least <= used.min() < least + 0.02 * span and most - 0.02 * span < used.max() <= most + 1e-6
    degree = torch.arange(4)[:, None] + torch.arange(4)
    assert (drawn.bias[..., degree > 3] == 0).all() and (drawn.bias[..., degree <= 3] != 0).any()


def test_an_image_keeps_its_range_and_two_calls_differ():
    x = torch.randn(3, 1, 8, 16, 16, generator=torch.Generator().manual_seed(1)) * 4 - 1
    units = [ChannelUnits("zscore")]
    same = contrast.augment(x, units, STILL, torch.Generator().manual_seed(0))
    assert torch.allclose(same, x, atol=1e-5)
    strong = replace(STILL, bias_p=1.0, inversion_p=1.0, gamma_p=1.0)
    changed = contrast.augment(x, units, strong, torch.Generator().manual_seed(0))
    for kept in ("amin", "amax"):
        assert torch.allclose(getattr(changed, kept)((1, 2, 3, 4)), getattr(x, kept)((1, 2, 3, 4)), atol=1e-4)
    assert not torch.allclose(changed, contrast.augment(x, units, strong, torch.Generator().manual_seed(1)), atol=0.1)
    assert contrast.augment(x, units, replace(strong, intensity="none"), torch.Generator()) is x
    with pytest.raises(ValueError, match="1 channels; expected 2"):
        contrast.augment(x, units * 2, strong, torch.Generator())


def test_the_axial_axis_is_not_blurred_and_a_constant_image_stays_finite():
    recipe = replace(STILL, blur_p=1.0, blur_sigma=[1.3, 1.3])
    x = torch.zeros(1, 1, 9, 9, 9)
    x[0, 0, 4, 4, 4] = 1.0
    units = [ChannelUnits("hu")]
    for axis in (0, 2):
        found = contrast.augment(x, units, recipe, torch.Generator().manual_seed(0), axial_axis=axis)[0, 0]
        assert (found.movedim(axis, 0)[[3, 5]] == 0).all() and found.movedim(axis, 0)[4, 4, 3] > 0
    flat = contrast.augment(torch.full((1, 1, 8, 8), 2.0), units, Recipe(), torch.Generator().manual_seed(3))
    assert flat.isfinite().all()

"""Intensities: each step against a float64 port, and every probability and range by sampling."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnunet_ssl import blurring
from nnunet_ssl import intensity as it
from nnunet_ssl.objectives.vox2vec import Recipe
from tests.oracles import intensities as oracle

PAPER = Recipe()
STILL = replace(PAPER, blur_sharpen_p=0.0, noise_p=0.0, window_p=0.0, gain_shift_p=0.0)
CT = it.ChannelUnits("hu", mean=-120.0, std=410.0)
MR = it.ChannelUnits("zscore")
MANY = (20_000, 2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def detail(sigma, amount):
    return it.Detail(torch.tensor(sigma), torch.tensor(amount))


def near(share, p, count=MANY[0] * MANY[1]):
    return abs(float(share) - p) < 5 * max(p * (1 - p) / count, 1e-12) ** 0.5


def within(drawn, lo, hi):
    """All in [lo, hi], reaching both ends, centred."""
    span = hi - lo
    inside = bool((drawn >= lo).all() and (drawn <= hi).all())
    return inside and drawn.min() < lo + 0.01 * span and drawn.max() > hi - 0.01 * span and (
        abs(float(drawn.mean()) - (lo + hi) / 2) < 0.02 * span
    )


def test_blur_and_sharpen_are_drawn_as_published():
    drawn = it.draw_detail(generator(), MANY, PAPER)
    sharpened, touched = drawn.amount > 0, drawn.sigma > 0
    assert near(touched.float().mean(), 0.5)
    assert near(sharpened.float().mean(), 0.25)
    assert not (sharpened & ~touched).any()
    assert within(drawn.sigma[touched & ~sharpened], 0.25, 1.5)
    assert within(drawn.sigma[sharpened], 0.5, 1.0)
    assert within(drawn.amount[sharpened], 10.0, 30.0)


def test_noise_and_window_are_drawn_as_published():
    drawn = it.draw_ct(generator(), MANY, PAPER)
    noisy, windowed = drawn.noise > 0, drawn.hi != 1000
    assert near(noisy.float().mean(), 0.5)
    assert within(drawn.noise[noisy], 0.0, 30.0)
    assert near(windowed.float().mean(), 0.8)
    assert within(drawn.lo[windowed], -1350.0, -1000.0)
    assert within(drawn.hi[windowed], 300.0, 1000.0)
    assert (drawn.lo[~windowed] == -1350).all()
    both = (noisy & (drawn.detail.sigma > 0) & windowed).float().mean()
    assert near(both, 0.5 * 0.5 * 0.8), "the three steps are drawn independently"


def test_gain_and_shift_are_drawn_from_their_ranges():
    drawn = it.draw_zscore(generator(), MANY, PAPER)
    active = drawn.shift != 0
    assert near(active.float().mean(), 0.8)
    assert within(drawn.gain[active], 0.75, 1.25)
    assert within(drawn.shift[active], -0.25, 0.25)
    assert (drawn.gain[~active] == 1).all()
    assert near((drawn.noise > 0).float().mean(), 0.5)
    assert within(drawn.noise[drawn.noise > 0], 0.0, 0.1)


@pytest.mark.parametrize("recipe", [STILL, replace(PAPER, blur_sharpen_p=1, noise_p=1, window_p=1, gain_shift_p=1)])
def test_probabilities_zero_and_one(recipe):
    p = recipe.noise_p
    for drawn in (it.draw_ct(generator(), (500, 1), recipe), it.draw_zscore(generator(), (500, 1), recipe)):
        assert ((drawn.noise > 0) == bool(p)).all()
        assert ((drawn.detail.sigma > 0) == bool(p)).all()


@pytest.mark.parametrize(("shape", "axes"), [((5, 9, 8), [1, 2]), ((9, 8), [0, 1]), ((3, 4, 2), [1, 2])])
def test_detail_and_window_equal_the_float64_port(shape, axes):
    rng = np.random.default_rng(0)
    x = rng.normal(-300, 500, (2, 2, *shape))
    drawn = it.CTParameters(
        detail([[1.2, 0.0], [0.7, 0.3]], [[0.0, 0.0], [17.0, 0.0]]),
        torch.tensor([[0.0, 25.0], [10.0, 0.0]]),
        torch.tensor([[-1350.0, -1100.0], [-1000.0, -1200.0]]),
        torch.tensor([[1000.0, 400.0], [300.0, 900.0]]),
    )
    field = rng.normal(size=x.shape)
    found = it.apply_ct(torch.tensor(x), drawn, torch.tensor(field), axes, 1.5).numpy()
    for b, c in np.ndindex(2, 2):
        sigma, amount = float(drawn.detail.sigma[b, c]), float(drawn.detail.amount[b, c])
        expected = x[b, c]
        if amount:
            expected = oracle.sharpen(expected, sigma, amount, axes, radius=6)
        elif sigma:
            expected = oracle.blur(expected, sigma, axes, radius=6)
        expected = expected + float(drawn.noise[b, c]) * field[b, c]
        expected = oracle.window(expected, float(drawn.lo[b, c]), float(drawn.hi[b, c]))
        assert np.abs(found[b, c] - expected).max() < 1e-2  # HU: parameters are float32


def test_blur_stays_in_the_axial_plane_and_keeps_the_sum():
    x = torch.zeros(2, 7, 21, 21)
    x[:, 3, 10, 10] = 1.0
    found = it.gaussian(x, torch.tensor([1.5, 0.0]), [1, 2], 6)
    assert found[:, [0, 1, 2, 4, 5, 6]].abs().max() == 0
    assert torch.equal(found[1], x[1])
    assert found[0].sum() == pytest.approx(1.0, abs=1e-5)
    assert found[0, 3, 10, 12] / found[0, 3, 10, 10] == pytest.approx(np.exp(-4 / (2 * 1.5**2)), rel=1e-5)
    assert torch.allclose(found[0, 3], found[0, 3].T, atol=1e-8)


@pytest.mark.parametrize(("axial", "untouched"), [(0, 0), (2, 2), (None, None)])
def test_the_axial_axis_can_be_another_or_none(axial, untouched):
    recipe = replace(STILL, blur_sharpen_p=1.0, sharpen_amount=[0.0, 0.0])
    x = torch.zeros(1, 1, 9, 9, 9)
    x[0, 0, 4, 4, 4] = 5.0
    found = it.augment(x, [MR], recipe, generator(1), axial_axis=axial)[0, 0]
    spread = [bool(found.select(axis, 3).abs().max() > 0) for axis in range(3)]
    assert spread == [axis != untouched for axis in range(3)]


def test_border_voxels_go_on_outside():
    flat = torch.full((3, 4, 5, 6), 7.0)
    assert torch.allclose(it.gaussian(flat, torch.tensor([0.3, 1.0, 1.5]), [0, 1, 2], 6), flat, atol=1e-5)


@pytest.mark.parametrize("kind", [CT, MR])
def test_views_do_not_depend_on_their_neighbours_in_the_batch(kind):
    x = torch.randn(6, 1, 4, 12, 12, generator=generator(1))
    draw, apply = (it.draw_ct, it.apply_ct) if kind is CT else (it.draw_zscore, it.apply_zscore)
    drawn, field = draw(generator(), (6, 1), PAPER), torch.randn(x.shape, generator=generator(2))
    together = apply(x, drawn, field, [1, 2], 1.5)

    def row(value, i):
        if isinstance(value, torch.Tensor):
            return value[i : i + 1]
        return type(value)(**{name: row(part, i) for name, part in vars(value).items()})

    for i in range(6):
        alone = apply(x[i : i + 1], row(drawn, i), field[i : i + 1], [1, 2], 1.5)
        assert torch.allclose(alone[0], together[i], atol=1e-3)


def test_ct_is_augmented_in_hu_whatever_the_plan_normalises_by():
    hu = torch.randn(4, 1, 4, 10, 10, generator=generator(3)) * 600 - 400
    paper = it.ChannelUnits("hu", mean=-1350.0, std=2350.0)
    results = []
    for units in (CT, paper):
        views = it.augment((hu - units.mean) / units.std, [units], PAPER, generator(4))
        results.append(views * units.std + units.mean)
    assert torch.allclose(results[0], results[1], atol=0.05)
    views = it.augment((hu - paper.mean) / paper.std, [paper], PAPER, generator(4))
    assert views.min() >= -1e-6  # vox2vec's [0, 1]
    assert views.max() <= 1 + 1e-6


def test_nothing_drawn_changes_nothing():
    x = torch.randn(3, 1, 3, 6, 6, generator=generator(0))
    assert torch.equal(it.augment(x, [MR], STILL, generator()), x)
    hu = x * CT.std + CT.mean
    assert torch.allclose(it.augment(x, [CT], STILL, generator()) * CT.std + CT.mean, hu.clamp(-1350, 1000), atol=1e-2)
    assert it.augment(x, [CT], replace(PAPER, intensity="none"), generator()) is x


def test_a_drawn_window_clips_and_stretches():
    recipe = replace(STILL, window_p=1.0, window_lo_hu=[-1000.0, -1000.0], window_hi_hu=[400.0, 400.0])
    hu = torch.tensor([-2000.0, -1000.0, -300.0, 400.0, 3000.0]).view(1, 1, 5, 1)
    found = it.augment((hu - CT.mean) / CT.std, [CT], recipe, generator()) * CT.std + CT.mean
    assert found.flatten().tolist() == pytest.approx([-1350, -1350, -175, 1000, 1000], abs=0.01)


def test_noise_has_the_drawn_strength_and_is_new_in_each_view():
    recipe = replace(STILL, noise_p=1.0, noise_z=[0.07, 0.07], noise_hu=[20.0, 20.0])
    zero = torch.zeros(2, 1, 16, 32, 32)
    found = it.augment(zero, [MR], recipe, generator())
    assert found.std() == pytest.approx(0.07, rel=0.03)
    assert not torch.equal(found[0], found[1])
    assert it.augment(zero, [CT], recipe, generator()).std() * CT.std == pytest.approx(20.0, rel=0.03)


def test_a_sharpened_view_that_is_not_ct_stays_in_its_own_range():
    recipe = replace(STILL, blur_sharpen_p=1.0)
    x = torch.randn(8, 1, 4, 12, 12, generator=generator(0))
    found = it.augment(x, [MR], recipe, generator(1))
    assert (found.amin((2, 3, 4)) >= x.amin((2, 3, 4)) - 1e-6).all()
    assert (found.amax((2, 3, 4)) <= x.amax((2, 3, 4)) + 1e-6).all()
    assert not torch.allclose(found, x, atol=1e-3)


def test_the_generator_decides_everything_and_the_input_is_left_alone():
    x = torch.randn(4, 2, 3, 8, 8, generator=generator(0))
    kept = x.clone()
    first, again, other = (it.augment(x, [CT, MR], PAPER, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(x, kept)
    source = generator(5)
    a, b = (it.augment(x, [CT, MR], PAPER, source) for _ in range(2))
    assert not torch.equal(a, b)
    assert torch.equal(a, first)


def test_channels_are_treated_by_their_kind():
    x = torch.full((1, 3, 8, 8), 40.0)  # 16,280 HU: clipped; a z-score of 40: not
    found = it.augment(x, [MR, CT, MR], STILL, generator())
    assert found[:, [0, 2]].eq(40).all()
    assert (found[:, 1] * CT.std + CT.mean).sub(1000).abs().max() < 0.01
    assert it.augment(x, [MR, CT, MR], replace(STILL, intensity="zscore"), generator()).eq(40).all()


def test_gradients_are_not_recorded_and_autocast_does_not_round():
    x = torch.randn(2, 1, 4, 8, 8, generator=generator(0)).requires_grad_()
    plain = it.augment(x, [CT], PAPER, generator(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = it.augment(x, [CT], PAPER, generator(1))
    assert not plain.requires_grad
    assert torch.equal(plain, again)


def test_what_cannot_be_is_refused():
    x = torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match="views have 2 channels; expected 1"):
        it.augment(x, [MR], PAPER, generator())
    with pytest.raises(ValueError, match=r"intensity is 'hu', but channels \[1\] are not CT"):
        it.augment(x, [CT, MR], replace(PAPER, intensity="hu"), generator())
    with pytest.raises(ValueError, match="kind is 'ct'"):
        it.ChannelUnits("ct")
    with pytest.raises(ValueError, match="std > 0"):
        it.ChannelUnits("hu", 0.0, 0.0)


@pytest.mark.parametrize("shape", [(3, 5, 9, 11), (2, 7, 6), (1, 1, 3, 20), (2, 70, 5, 33), (1, 64, 101)])
def test_blurs_by_blocks_and_by_shifts_are_the_same(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    weights = torch.rand(shape[0], 9, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    for axis in range(len(shape) - 1):
        expected = blurring._by_shifts(x, weights, axis)
        torch.testing.assert_close(blurring._by_blocks(x, weights, axis), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = blurring._by_blocks(x.float(), weights.float(), axis)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["hu", "zscore"])
def test_augmenting_leaves_its_input_and_draws_for_each_view(kind):
    views = torch.randn(6, 2, 4, 12, 10, generator=torch.Generator().manual_seed(1))
    kept = views.clone()
    units = [it.ChannelUnits(kind, 40.0, 300.0)] * 2
    found = it.augment(views, units, Recipe(), torch.Generator().manual_seed(2))
    assert torch.equal(views, kept) and found.shape == views.shape
    same = views[:1].expand_as(views)
    found = it.augment(same, units, Recipe(), torch.Generator().manual_seed(2))
    assert len({view.numpy().tobytes() for view in found}) == 6

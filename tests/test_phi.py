"""Pix2Rep's views show the same physical points: coordinates are written into the image, and read at both places."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnunet_ssl import geometry, phi, transformed
from nnunet_ssl.elastic import LARGEST_MOVE, displacement, lattice_shape
from nnunet_ssl.objectives.pix2rep import Recipe
from nnunet_ssl.pyramid import gather
from tests.view_volumes import GRIDS, Volume

PLAIN = Recipe(voxels_per_pair="all", identity_p=0.0)
BENT = replace(PLAIN, elastic_p=1.0, elastic_amount=[1.0, 1.0], flip_axes=[1])
SCALED = replace(BENT, view_side=[0.4, 0.8], rotation_deg=180.0, crop_side=[0.5, 1.2])
RECIPES = {"plain": PLAIN, "bent": BENT, "scaled": SCALED}


def endless(start, size):
    """(D, *size) coordinates of a box's voxels in the volume, outside of it too: linear reading of them is exact."""
    return (np.indices(size) + np.reshape(start, (-1, *[1] * len(size)))).astype(np.float32)


def pair_of(name, recipe, seed, volume=None):
    shape, patch, spacing = GRIDS[name]
    volume = volume or Volume(shape)
    drawn = phi.draw_pair(np.random.default_rng(seed), shape, patch, spacing, recipe, None, volume.read_mask)
    return volume, patch, spacing, drawn


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("name", GRIDS)
def test_both_views_read_the_same_places_of_the_volume(name, recipe):
    """Identity network, no intensities: coords_a and coords_b find the same, at every valid point."""
    found = 0
    for seed in range(6):
        volume, patch, spacing, drawn = pair_of(name, recipe, seed)
        size = phi.box_size(patch, spacing, recipe)
        batch = transformed.collate([(drawn, endless(drawn.start, size))])
        pair = transformed.assemble(batch, patch, recipe)
        ones = [(1,) * len(patch)]
        read_a, read_b = (gather([v], ones, c, "linear")[pair.valid]
                          for v, c in ((pair.a, pair.coords_a), (pair.b, pair.coords_b)))  # fmt: skip
        assert drawn.points <= pair.valid.sum() == len(read_a)
        found += len(read_a)
        if not len(read_a):
            continue
        assert (read_a - read_b).abs().max() < 5e-3
        places = read_b.numpy()
        assert geometry.in_bounds(places, volume.shape, tolerance=5e-3).all(), "padding was compared"
        near = np.abs(places - np.rint(places)).max(1) < 0.49  # not between two voxels of the mask
        inside = volume.foreground[tuple(np.rint(places).astype(int).clip(0, np.array(volume.shape) - 1).T)]
        assert inside[near].all(), "background was compared"
        assert geometry.in_bounds(pair.coords_a[pair.valid].numpy(), patch).all()
    assert found > 100


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("name", GRIDS)
def test_a_box_holds_both_views(name, recipe):
    """Where b looks outside of a it sees the volume, not the end of the box."""
    for seed in range(20):
        _, patch, spacing, drawn = pair_of(name, recipe, seed)
        size = np.asarray(phi.box_size(patch, spacing, recipe))
        batch = transformed.collate([(drawn, endless(drawn.start, tuple(size)))])
        in_a = transformed.places(batch, patch, recipe)
        in_box = transformed.move(batch.map_a, in_a)[0].flatten(0, -2)
        corners = np.indices([2] * len(patch)).reshape(len(patch), -1).T * (np.asarray(patch) - 1)
        of_a = torch.from_numpy(geometry.apply(drawn.map_a, corners))
        for places in (in_box, of_a):
            assert (places >= 0).all() and (places <= torch.from_numpy(size) - 1).all()


def test_the_transform_is_what_was_asked_for():
    """Affine part in mm: a turn of the drawn scale; shares and ranges by sampling."""
    patch, spacing = (24, 30, 20), (2.0, 1.0, 0.7)
    recipe = replace(PLAIN, identity_p=0.3, rotation_deg=[40.0, 10.0, 5.0], crop_side=[0.4, 0.9], flip_axes=[2])
    rng, still, mirrored, sides, angles, shifts = np.random.default_rng(0), 0, 0, [], [], []
    for _ in range(2000):
        psi, control = phi.draw_phi(rng, patch, spacing, recipe)
        assert not control.any()
        if np.array_equal(psi, geometry.identity(3)):
            still += 1
            continue
        in_mm = psi[:3, :3] * np.asarray(spacing)[:, None] / np.asarray(spacing)[None, :]
        side = abs(np.linalg.det(in_mm)) ** (1 / 3)
        turn = in_mm / side
        mirrored += np.linalg.det(turn) < 0
        turn = turn @ np.diag([1, 1, np.sign(np.linalg.det(turn))])
        assert np.allclose(turn @ turn.T, np.eye(3))
        sides.append(side)
        angles.append(np.rad2deg(np.arctan2(turn[2, 1], turn[1, 1])))
        middle = geometry.apply(psi, (np.asarray(patch) - 1) / 2) - (np.asarray(patch) - 1) / 2
        shifts.append(middle / ((1 - side) * (np.asarray(patch) - 1) / 2))
    assert 0.26 < still / 2000 < 0.34 and 0.45 < mirrored / len(sides) < 0.55
    assert 0.4 <= min(sides) < 0.42 and 0.88 < max(sides) <= 0.9 + 1e-9
    assert 38 < max(angles) < 42 and -42 < min(angles) < -38
    assert np.abs(shifts).max() <= 1 + 1e-6 and np.abs(shifts).max() > 0.98


def test_open_angles_are_those_of_the_data():
    assert phi.rotation_limits([1.0, 1.0], PLAIN).tolist() == [90.0]
    assert phi.rotation_limits([1.0, 1.0, 1.0], PLAIN).tolist() == [90.0, 15.0, 15.0]
    assert phi.rotation_limits([1.0, 5.0, 1.0], PLAIN).tolist() == [0.0, 90.0, 0.0]  # about the coarse axis alone
    assert phi.rotation_limits([1.0, 5.0, 1.0], replace(PLAIN, rotation_deg=20.0)).tolist() == [20.0] * 3
    with pytest.raises(ValueError, match="rotation_deg has 3 numbers; expected one number or 1 for 2D views"):
        phi.box_size((16, 16), (1.0, 1.0), replace(PLAIN, rotation_deg=[1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match=r"flip_axes is .2.; expected axes of a 2D patch"):
        phi.box_size((16, 16), (1.0, 1.0), replace(PLAIN, flip_axes=[2]))


@pytest.mark.parametrize("shape", [(21, 30), (11, 12, 11)])
def test_the_strongest_bending_does_not_fold(shape):
    """Determinant of the deformation's Jacobian, by differences of a fifth of a voxel: positive everywhere."""
    spacing = [5.0] * len(shape)
    generator = torch.Generator().manual_seed(0)
    lattice = (1, len(shape), *lattice_shape(shape, spacing))
    axes = [torch.arange(0, size - 1, 0.2, dtype=torch.float64) for size in shape]
    for _ in range(10):
        signs = torch.where(torch.rand(lattice, generator=generator) < 0.5, -1.0, 1.0).double()
        field = displacement(signs * LARGEST_MOVE[len(shape)] * 5.0, axes, spacing)[0]
        columns = [torch.diff(field, dim=d) / 0.2 for d in range(len(shape))]
        columns = [c[tuple(slice(0, n - 1) for n in field.shape[:-1])] for c in columns]
        jacobian = torch.stack(columns, -1) + torch.eye(len(shape), dtype=torch.float64)
        assert torch.linalg.det(jacobian).min() > 0
    assert field.abs().max() > 0.5  # it does bend


def test_displacement_is_the_cubic_b_spline():
    """Against the sum over control points, with the textbook kernel."""

    def kernel(t):
        t = abs(t)
        return (4 - 6 * t**2 + 3 * t**3) / 6 if t < 1 else max(0.0, 2 - t) ** 3 / 6

    shape, spacing = (9, 11), (2.5, 4.0)
    control = torch.randn(1, 2, *lattice_shape(shape, spacing), generator=torch.Generator().manual_seed(1)).double()
    found = displacement(control, [torch.arange(n) for n in shape], spacing)[0]
    for y in range(shape[0]):
        for x in range(shape[1]):
            expected = sum(control[0, :, i, j] * kernel(y / 2.5 - (i - 1)) * kernel(x / 4.0 - (j - 1))
                           for i in range(control.shape[2]) for j in range(control.shape[3]))  # fmt: skip
            assert torch.allclose(found[y, x], expected, atol=1e-12)


def test_points_are_drawn_uniformly_without_replacement_from_what_is_shared():
    shared = torch.zeros(2, 50, dtype=torch.bool)
    shared[0, 10:30], shared[1, [3, 7, 8]] = True, True
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(50)
    for _ in range(4000):
        chosen, valid = transformed.draw_points(shared, 5, generator)
        assert chosen.shape == valid.shape == (2, 5) and valid.sum(1).tolist() == [5, 3]
        assert set(chosen[1][valid[1]].tolist()) == {3, 7, 8} and len(set(chosen[0].tolist())) == 5
        counts[chosen[0]] += 1
    assert counts[10:30].min() > 900 and counts[10:30].max() < 1100 and counts.sum() == counts[10:30].sum()
    chosen, valid = transformed.draw_points(shared, 50, None)
    assert chosen[0].tolist() == list(range(50)) and torch.equal(valid, shared)


def test_what_falls_outside_is_compared_where_it_is_asked_for():
    """mask_invalid = false is the published code: every place, read as zero outside of view a."""
    recipe = replace(PLAIN, mask_invalid=False, crop_side=[1.6, 1.6], rotation_deg=45.0)
    _, patch, spacing, drawn = pair_of("2d", recipe, 0)
    image = np.ones((1, *phi.box_size(patch, spacing, recipe)), np.float32)
    pair = transformed.assemble(transformed.collate([(drawn, image)]), patch, recipe)
    assert pair.valid.all() and recipe.outside == "zeros"
    values = gather([torch.ones_like(pair.a)], [(1, 1)], pair.coords_a, "linear", recipe.outside)
    far = (pair.coords_a < -1).any(-1) | (pair.coords_a > torch.tensor(patch)).any(-1)
    assert far.any() and (values[far] == 0).all() and not far.all() and values.max() == 1
    masked = transformed.assemble(transformed.collate([(drawn, image)]), patch, replace(recipe, mask_invalid=True))
    assert 0 < masked.valid.sum() < pair.valid.sum()


def test_a_transform_that_leaves_nothing_is_known_before_anything_is_read():
    shape, patch, spacing = GRIDS["3d"]
    mask = np.zeros(shape, bool)
    mask[0, 0, 0] = True
    rng, counts = np.random.default_rng(0), []
    for _ in range(40):
        drawn = phi.draw_pair(rng, shape, patch, spacing, PLAIN, None, lambda s, n: mask[tuple(map(slice, s, s + n))])
        counts.append(drawn.points)
    assert min(counts) == 0

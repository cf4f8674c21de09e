"""Where views and points are drawn: ranges, probabilities, borders."""

from dataclasses import fields, replace

import numpy as np
import pytest

from nnunet_ssl import geometry as geo
from nnunet_ssl import views
from nnunet_ssl.anchors import count_slices
from nnunet_ssl.drawing import draw_map
from tests.view_volumes import AFFINE, CROP, FLIP, GRIDS, Volume, draw


@pytest.mark.parametrize("name", ["3d", "anisotropic", "2d"])
def test_a_box_holds_every_view(name):
    shape, patch, spacing = GRIDS[name]
    rng = np.random.default_rng(0)
    ends = np.stack(np.meshgrid(*[(0, p - 1) for p in patch]), axis=-1).reshape(-1, len(patch))
    for rotation in (0.0, 10.0, 90.0, 180.0):
        recipe = replace(AFFINE, rotation_deg=rotation)
        size = np.array(views.box_size(patch, spacing, recipe))
        for _ in range(60):
            drawn = views.draw_pair(rng, shape, patch, spacing, recipe, None, Volume(shape).read_mask)
            for start, matrix in ((drawn.start_a, drawn.map_a), (drawn.start_b, drawn.map_b)):
                reach = geo.apply(matrix, ends) - start
                assert reach.min() > -1e-6
                assert (reach.max(axis=0) < size - 1 + 1e-6).all()
    assert views.box_size(patch, spacing, CROP) == patch


def test_maps_keep_to_their_ranges():
    spacing, patch, anchor = np.array([3.0, 1.0, 0.7]), (8, 16, 16), np.array([4, 5, 6])
    recipe = replace(CROP, spatial="affine", rotation_deg=[20.0, 0.0, 0.0], scale=[0.5, 2.0])
    rng = np.random.default_rng(0)
    scales, angles = [], []
    for _ in range(800):
        matrix = draw_map(rng, np.array([0, 1, 2]), patch, spacing, anchor, recipe)
        assert np.allclose(geo.apply(matrix, anchor - [0, 1, 2]), anchor)  # the anchor stays in its place
        in_mm = matrix[:-1, :-1] * spacing[:, None] / spacing[None, :]
        sizes = np.linalg.svd(in_mm, compute_uv=False)
        assert np.allclose(sizes, sizes[0])
        scales.append(1 / sizes[0])
        turn = in_mm / sizes[0]
        assert np.allclose(turn[0], [1, 0, 0])
        angles.append(np.rad2deg(np.arctan2(turn[2, 1], turn[1, 1])))
    assert 0.5 <= min(scales) < 0.53
    assert 1.9 < max(scales) <= 2.0
    assert abs(np.mean(np.log(scales))) < 0.06  # magnified as often as reduced
    assert -20 <= min(angles) < -19
    assert 19 < max(angles) <= 20


def test_flips_are_independent_and_fair():
    rng = np.random.default_rng(0)
    recipe = replace(CROP, flip_axes=[0, 2])
    maps = [draw_map(rng, np.zeros(3, dtype=int), (4, 5, 6), (1, 1, 1), np.zeros(3), recipe) for _ in range(2000)]
    signs = np.array([np.diag(m)[:3] for m in maps])
    assert (signs[:, 1] == 1).all()
    for z, x in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        assert abs(((signs[:, 0] == z) & (signs[:, 2] == x)).mean() - 0.25) < 0.04


@pytest.mark.parametrize(("patch", "rotation"), [((8, 8, 8), [1.0, 2.0]), ((8, 8), [1.0, 2.0, 3.0])])
def test_a_wrong_number_of_angles_is_refused(patch, rotation):
    with pytest.raises(ValueError, match="rotation_deg has"):
        views.box_size(patch, [1.0] * len(patch), replace(AFFINE, rotation_deg=rotation))


def test_starts_are_uniform_over_the_positions_that_hold_the_anchor():
    rng = np.random.default_rng(0)
    starts = np.array([views.draw_starts(rng, (20, 9, 5, 8), (6, 6, 8, 8), (2, 8, 3, 1)) for _ in range(3000)])
    assert sorted(set(starts[:, 0])) == [0, 1, 2]  # not below the volume
    assert sorted(set(starts[:, 1])) == [3]  # not beyond it
    assert set(starts[:, 2]) == {-1}  # centred
    assert set(starts[:, 3]) == {0}
    inner = np.array([views.draw_starts(rng, (20,), (6,), (10,))[0] for _ in range(6000)])
    counts = np.bincount(inner, minlength=20)
    assert counts[:5].sum() == counts[11:].sum() == 0
    assert (abs(counts[5:11] - 1000) < 150).all()  # 5 standard deviations


def test_anchors_are_uniform_over_the_foreground():
    volume = Volume((4, 5, 6), share=0.3)
    rng = np.random.default_rng(0)
    drawn = np.array([views.draw_anchor(rng, volume.shape, volume.read_mask) for _ in range(6000)])
    found, counts = np.unique(drawn, axis=0, return_counts=True)
    assert np.array_equal(found, np.argwhere(volume.foreground))
    mean = 6000 / len(found)
    assert (abs(counts - mean) < 5.5 * np.sqrt(mean)).all()


@pytest.mark.parametrize("recipe", [CROP, FLIP, AFFINE], ids=["crop", "flip", "affine"])
@pytest.mark.parametrize("name", GRIDS)
def test_a_single_foreground_voxel_is_found_in_both_views(name, recipe):
    shape = GRIDS[name][0]
    for seed in range(4):
        volume = Volume(shape, share=0)
        voxel = tuple(np.random.default_rng(seed).integers(0, shape))
        volume.foreground[voxel] = True
        _, _, drawn = draw(name, recipe, seed, volume)
        places = geo.apply(drawn.map_a, drawn.coords_a[drawn.valid])
        assert drawn.valid.sum() >= 1
        assert np.abs(places - voxel).max() <= 0.5 + 1e-6
        assert not drawn.coords_a[~drawn.valid].any()  # what does not exist has harmless coordinates


def test_without_foreground_it_says_so():
    with pytest.raises(ValueError, match=r"no foreground voxel in a volume of shape \(20, 26, 30\)"):
        draw("3d", CROP, 0, Volume((20, 26, 30), share=0))


@pytest.mark.parametrize("name", ["3d", "2d"])
def test_anchors_of_a_sparse_foreground_are_uniform_and_read_no_more_than_slabs(name):
    shape = GRIDS[name][0]
    volume = Volume(shape, share=0.004)
    sizes, counted = [], []

    def read_mask(start, size):
        sizes.append(int(np.prod(size)))
        return volume.read_mask(start, size)

    def counts():
        counted.append(count_slices(shape, volume.read_mask))
        return counted[-1]

    rng = np.random.default_rng(0)
    drawn = np.array([views.draw_anchor(rng, shape, read_mask, counts, tries=2) for _ in range(4000)])
    assert len(counted) > 3000
    assert np.array_equal(counted[0], volume.foreground.reshape(shape[0], -1).sum(1))
    assert max(sizes) == np.prod(shape[1:])  # a slice, never the volume
    places, times = np.unique(drawn, axis=0, return_counts=True)
    assert np.array_equal(places, np.argwhere(volume.foreground))
    expected = 4000 / len(places)
    assert (np.abs(times - expected) < 5 * np.sqrt(expected)).all()
    without = views.draw_anchor(np.random.default_rng(1), shape, read_mask, None, tries=0)
    assert volume.foreground[tuple(without)]


def test_an_anchor_can_be_given():
    shape, patch, spacing = GRIDS["3d"]
    volume, anchor = Volume(shape, share=1), np.array([19, 0, 7])
    for seed in range(5):
        rng = np.random.default_rng(seed)
        drawn = views.draw_pair(rng, shape, patch, spacing, CROP, lambda _: anchor, volume.read_mask)
        for start in (drawn.start_a, drawn.start_b):
            assert (start <= anchor).all()
            assert (anchor < start + patch).all()


def test_shared_voxels_are_drawn_without_replacement_and_uniformly():
    mask = np.random.default_rng(0).random((3, 4, 5)) < 0.4
    rng = np.random.default_rng(1)
    total, counts = int(mask.sum()), np.zeros(mask.shape)
    for _ in range(3000):
        points, valid = views.draw_shared(rng, mask, 6)
        assert valid.all()
        assert len(np.unique(points, axis=0)) == 6
        counts[tuple(points.T)] += 1
    assert counts[~mask].sum() == 0
    mean = 3000 * 6 / total
    assert (abs(counts[mask] - mean) < 5.5 * np.sqrt(mean)).all()
    points, valid = views.draw_shared(rng, mask, 100)
    assert valid.tolist() == [True] * total + [False] * (100 - total)
    assert sorted(map(tuple, points[valid])) == sorted(map(tuple, np.argwhere(mask)))
    points, valid = views.draw_shared(rng, np.zeros((2, 2), dtype=bool), 3)
    assert points.shape == (3, 2)
    assert not valid.any()


def test_as_many_points_as_the_overlap_has_and_no_more():
    shape, patch, _ = GRIDS["3d"]
    volume = Volume(shape, share=0.2)
    for recipe in (replace(CROP, voxels_per_pair=10_000), replace(AFFINE, voxels_per_pair=10_000)):
        _, _, drawn = draw("3d", recipe, 5, volume)
        voxels = np.indices(patch).reshape(3, -1).T
        places = geo.apply(drawn.map_b, voxels)
        inside = geo.in_bounds(geo.apply(geo.compose(geo.invert(drawn.map_a), drawn.map_b), voxels), patch, 1e-6)
        inside &= geo.in_bounds(places, shape, 1e-6)
        inside[inside] = volume.foreground[tuple(np.rint(places[inside]).astype(int).T)]
        assert drawn.valid.sum() == inside.sum() > 0
        assert len(drawn.valid) == 10_000


@pytest.mark.parametrize("recipe", [CROP, AFFINE], ids=["crop", "affine"])
def test_the_generator_decides_everything(recipe):
    first, again, other = (draw("3d", recipe, seed)[2] for seed in (7, 7, 8))
    same = [np.array_equal(getattr(first, f.name), getattr(again, f.name)) for f in fields(first)]
    assert all(same)
    assert not np.array_equal(first.coords_b, other.coords_b)


@pytest.mark.parametrize("start", [(2, 3), (-2, 3), (5, -4), (-3, -3), (9, 8)])
def test_a_box_is_zero_outside_the_volume(start):
    volume = Volume((10, 9))
    padded = np.pad(volume.image, ((0, 0), (20, 20), (20, 20)))
    found = views.read_box(volume.read_image, volume.shape, np.array(start), (16, 12))
    expected = padded[:, start[0] + 20 : start[0] + 36, start[1] + 20 : start[1] + 32]
    assert found.dtype == np.float32
    assert found.flags["C_CONTIGUOUS"]
    assert np.array_equal(found, expected.astype(np.float32))

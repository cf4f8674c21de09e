"""Views show the same physical points: coordinates are written into the image and compared where they are read."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from nnunet_ssl import geometry as geo
from nnunet_ssl import views
from nnunet_ssl.pyramid import gather
from tests.view_volumes import AFFINE, CROP, FLIP, GRIDS, Volume, draw


def endless_coordinates(start, size):
    """(D, *size) the coordinates of a box's voxels, outside the volume too: linear reading of them is exact."""
    return np.indices(size).astype(np.float32) + np.asarray(start, dtype=np.float32).reshape(-1, *[1] * len(size))


def collated(volume, drawn, patch, spacing, recipe):
    size = views.box_size(patch, spacing, recipe)
    boxes = [views.read_box(volume.read_image, volume.shape, start, size) for start in (drawn.start_a, drawn.start_b)]
    return views.collate([(drawn, *boxes)])


@pytest.mark.parametrize("recipe", [CROP, FLIP], ids=["crop", "flip"])
@pytest.mark.parametrize("name", GRIDS)
def test_crops_read_exactly_the_same_foreground_voxels(name, recipe):
    for seed in range(12):
        volume, patch, drawn = draw(name, recipe, seed)
        pair = views.assemble(collated(volume, drawn, patch, GRIDS[name][2], recipe), patch, recipe)
        assert pair.a.shape == pair.b.shape == (1, len(patch) + 1, *patch)
        found = []
        for view, coords in ((pair.a, pair.coords_a), (pair.b, pair.coords_b)):
            places = coords[0][pair.valid[0]]
            assert torch.equal(places, places.round())
            found.append(view[(0, slice(None), *places.long().T)])  # (D + 1, M)
        assert torch.equal(found[0], found[1])
        assert (found[0][:-1] >= 1).all(), "padding was sampled"
        assert (found[0][-1] == 1).all(), "background was sampled"
        assert found[0].shape[1] == len(found[0].unique(dim=1).T) >= 1, "a voxel was drawn twice"


@pytest.mark.parametrize("name", GRIDS)
def test_affine_views_read_the_same_places(name):
    spacing = GRIDS[name][2]
    for seed in range(12):
        volume, patch, drawn = draw(name, AFFINE, seed)
        size = views.box_size(patch, spacing, AFFINE)
        boxes = [endless_coordinates(start, size) for start in (drawn.start_a, drawn.start_b)]
        pair = views.assemble(views.collate([(drawn, *boxes)]), patch, AFFINE)
        ones = [(1,) * len(patch)]
        read_a = gather([pair.a], ones, pair.coords_a, mode="linear")[pair.valid]  # (M, D)
        read_b = gather([pair.b], ones, pair.coords_b, mode="linear")[pair.valid]
        assert len(read_a) >= 1
        assert (read_a - read_b).abs().max() < 1e-3
        expected = geo.apply(drawn.map_b, drawn.coords_b[drawn.valid])
        assert np.abs(read_b.numpy() - expected).max() < 1e-3
        assert geo.in_bounds(expected, volume.shape, tolerance=1e-5).all(), "padding was sampled"
        assert volume.foreground[tuple(np.rint(expected).astype(int).T)].all(), "background was sampled"
        assert len(np.unique(drawn.coords_b[drawn.valid], axis=0)) == drawn.valid.sum()
        for coords in (drawn.coords_a, drawn.coords_b):
            assert geo.in_bounds(coords, patch).all()


@pytest.mark.parametrize("name", ["3d", "2d", "one axis shorter"])
def test_affine_without_rotation_and_scale_is_the_crop(name):
    still = replace(CROP, spatial="affine", rotation_deg=0.0, scale=[1.0, 1.0])
    volume, patch, drawn = draw(name, still, 3)
    spacing = GRIDS[name][2]
    pair = views.assemble(collated(volume, drawn, patch, spacing, still), patch, still)
    start = np.rint(drawn.map_a[:-1, -1]).astype(int)
    assert np.abs(pair.a[0].numpy() - views.read_box(volume.read_image, volume.shape, start, patch)).max() < 1e-4


def test_a_batch_of_pairs_keeps_each_pair_as_it_was():
    shape, patch, spacing = GRIDS["anisotropic"]
    volume = Volume(shape)
    for recipe in (FLIP, AFFINE):
        drawn = [draw("anisotropic", recipe, seed, volume)[2] for seed in range(3)]
        alone = [views.assemble(collated(volume, d, patch, spacing, recipe), patch, recipe) for d in drawn]
        size = views.box_size(patch, spacing, recipe)
        read = [[views.read_box(volume.read_image, shape, s, size) for s in (d.start_a, d.start_b)] for d in drawn]
        batch = views.collate([(d, a, b) for d, (a, b) in zip(drawn, read, strict=True)])
        together = views.assemble(batch.to("cpu"), patch, recipe)
        for field in fields(together):
            expected = torch.cat([getattr(pair, field.name) for pair in alone])
            assert torch.allclose(getattr(together, field.name).double(), expected.double(), atol=1e-5), field.name
        assert together.coords_a.dtype == torch.float32
        assert together.valid.dtype == torch.bool


def test_each_view_is_enhanced_once():
    volume, patch, drawn = draw("2d", CROP, 0)
    batch, calls = collated(volume, drawn, patch, GRIDS["2d"][2], CROP), []
    pair = views.assemble(batch, patch, CROP, lambda view: calls.append(view) or view + 1)
    plain = views.assemble(batch, patch, CROP)
    assert len(calls) == 2
    assert torch.equal(pair.a, plain.a + 1)
    assert torch.equal(pair.b, plain.b + 1)
    assert not torch.equal(plain.a, plain.b)


def test_flat_indexes_the_rows_of_valid_points():
    valid = torch.tensor([[True, False, True], [False, False, True]])
    view, coords = torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 2)
    pair = views.ViewPair(view, view, coords, coords, valid)
    vectors = torch.arange(12.0).view(2, 3, 2)
    assert pair.flat().tolist() == [0, 2, 5]
    assert torch.equal(vectors.flatten(0, 1)[pair.flat()], vectors[valid])

"""Maps between voxel grids, and reading at mapped places."""

import numpy as np
import pytest
import torch

from nnunet_ssl import geometry as geo
from nnunet_ssl.warp import mirror, positions, warp
from tests.oracles.reading import read_linear


def test_a_quarter_turn_about_each_axis_moves_the_other_two_axes():
    z, y, x = np.eye(3)
    for axis, start, end in ((0, y, x), (1, z, x), (2, z, y)):
        angles = np.zeros(3)
        angles[axis] = np.pi / 2
        assert np.allclose(geo.rotation(list(angles)) @ start, end)
        assert np.allclose(geo.rotation(list(angles)) @ np.eye(3)[axis], np.eye(3)[axis])
    assert np.allclose(geo.rotation([np.pi / 2]) @ [1, 0], [0, 1])


def test_angles_are_applied_x_first_then_y_then_z():
    angles = [0.3, -0.2, 0.7]
    parts = [geo.rotation([a if i == j else 0.0 for j in range(3)]) for i, a in enumerate(angles)]
    assert np.allclose(geo.rotation(angles), parts[0] @ parts[1] @ parts[2])


@pytest.mark.parametrize(("angles", "spacing"), [([0.4, -0.3, 0.2], [5.0, 0.7, 1.0]), ([1.1], [3.0, 1.0])])
def test_rotation_scale_multiplies_distances_in_mm_and_keeps_its_centre(angles, spacing):
    rng = np.random.default_rng(0)
    centre = rng.uniform(0, 9, len(spacing))
    matrix = geo.rotation_scale(angles, 1.3, spacing, centre)
    assert np.allclose(geo.apply(matrix, centre), centre)
    p, q = rng.uniform(-20, 20, (2, 50, len(spacing)))
    before = np.linalg.norm((p - q) * spacing, axis=1)
    after = np.linalg.norm((geo.apply(matrix, p) - geo.apply(matrix, q)) * spacing, axis=1)
    assert np.allclose(after, 1.3 * before)


def test_compose_applies_the_last_map_first_and_invert_undoes_it():
    rng = np.random.default_rng(1)
    f = geo.rotation_scale([0.1, 0.2, 0.3], 0.8, [2, 1, 1], [1, 2, 3])
    g = geo.translation([4, 5, 6])
    points = rng.uniform(-9, 9, (7, 3))
    assert np.allclose(geo.apply(geo.compose(f, g), points), geo.apply(f, geo.apply(g, points)))
    assert np.allclose(geo.apply(geo.compose(geo.invert(f), f), points), points)
    assert np.array_equal(geo.apply(geo.identity(3), points), points)
    with pytest.raises(np.linalg.LinAlgError):
        geo.invert(geo.linear(np.zeros((3, 3)), [0, 0, 0]))


def test_flip_is_exact_on_integers_and_its_own_inverse():
    points = np.array([[0, 0, 0], [4, 6, 8], [1, 2, 3]])
    matrix = geo.flip((5, 7, 9), [0, 2])
    assert geo.apply(matrix, points).tolist() == [[4, 0, 8], [0, 6, 0], [3, 2, 5]]
    assert np.array_equal(geo.compose(matrix, matrix), geo.identity(3))
    assert np.array_equal(geo.invert(matrix), matrix)


def test_in_bounds_is_between_the_first_and_the_last_voxel_centre():
    coords = [[0, 0], [4, 6], [4.001, 6], [-0.001, 0], [2, 6.5]]
    assert geo.in_bounds(coords, (5, 7)).tolist() == [True, True, False, False, False]
    assert geo.in_bounds(coords, (5, 7), tolerance=0.01).tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_angles_is_refused(count):
    with pytest.raises(ValueError, match="expected 1"):
        geo.rotation([0.1] * count)


@pytest.mark.parametrize(
    ("shape", "out", "angles"), [((5, 6, 7), (4, 5, 3), [0.4, 0.2, -0.5]), ((8, 9), (6, 7), [0.6])]
)
def test_warp_equals_reading_point_by_point(shape, out, angles):
    rng = np.random.default_rng(2)
    image = rng.normal(size=(2, 2, *shape))
    maps = [geo.rotation_scale([s * a for a in angles], 1.2, [1.0] * len(shape), np.array(shape) / 2) for s in (1, -1)]
    found = warp(torch.tensor(image), torch.tensor(np.stack(maps)), out).numpy()
    assert found.shape == (2, 2, *out)
    voxels = np.indices(out).reshape(len(out), -1).T
    for b in range(2):
        for voxel, point in zip(voxels, geo.apply(maps[b], voxels), strict=True):
            for c in range(2):
                assert found[(b, c, *voxel)] == pytest.approx(read_linear(image[b, c], point), abs=1e-10)


def test_warp_reads_the_nearest_voxel_and_zero_outside():
    image = torch.arange(1.0, 13.0).view(1, 1, 3, 4)
    matrix = torch.tensor(geo.translation([0.4, -0.6]))[None]
    found = warp(image, matrix, (3, 5), "nearest")[0, 0]
    assert found[:, 0].tolist() == [0, 0, 0]  # -0.6 is nearest to -1
    assert found[:, 1:].tolist() == image[0, 0].tolist()
    with pytest.raises(ValueError, match="cubic"):
        warp(image, matrix, (3, 5), "cubic")


@pytest.mark.parametrize("autocast", [False, True])
def test_positions_are_not_rounded_by_autocast(autocast):
    matrix = geo.rotation_scale([0.3, 0.1, 0.2], 1.1, [3, 1, 1], [100, 200, 300])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = positions(torch.tensor(matrix, dtype=torch.float32)[None], (4, 5, 300))
    voxels = np.indices((4, 5, 300)).reshape(3, -1).T
    assert np.abs(found.reshape(-1, 3).numpy() - geo.apply(matrix, voxels)).max() < 2e-4


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5)])
def test_mirror_is_exact_and_each_sample_has_its_own_axes(shape):
    x = torch.randn(3, 2, *shape, generator=torch.Generator().manual_seed(0))
    flags = torch.tensor([[False] * len(shape), [True] * len(shape), [True] + [False] * (len(shape) - 1)])
    found = mirror(x, flags)
    assert torch.equal(found[0], x[0])
    assert torch.equal(found[1], x[1].flip(*range(1, len(shape) + 1)))
    assert torch.equal(found[2], x[2].flip(1))

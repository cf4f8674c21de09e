import numpy as np
import pytest
import torch

from nnunet_ssl.pyramid import LevelWidths, gather, upsample_nearest
from tests.oracles import pyramid as oracle

GRIDS = {  # finest size, cumulative strides; odd sizes and anisotropic strides
    "2d": ((9, 7), [(1, 1), (2, 2), (4, 4)]),
    "3d": ((5, 9, 7), [(1, 1, 1), (1, 2, 2), (2, 4, 4)]),
    "stride 3": ((7, 5), [(1, 1), (3, 1), (6, 2)]),
}


def pyramid(size, strides, batch=2):
    generator = torch.Generator().manual_seed(0)
    grids = [[-(-n // s) for n, s in zip(size, stride, strict=True)] for stride in strides]
    channels = [2 + i for i in range(len(strides))]
    return [
        torch.randn(batch, c, *grid, generator=generator, dtype=torch.float64)
        for c, grid in zip(channels, grids, strict=True)
    ]


def points(size, batch=2, n=40, margin=2.0):
    """Points inside, on halves, at integers, and up to ``margin`` voxels outside."""
    generator = torch.Generator().manual_seed(1)
    extent = torch.tensor(size) + 2 * margin
    coords = torch.rand(batch, n, len(size), generator=generator, dtype=torch.float64) * extent - margin
    coords[:, : n // 4] = coords[:, : n // 4].round()
    coords[:, n // 4 : n // 2] = coords[:, n // 4 : n // 2].floor() + 0.5
    return coords


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("name", GRIDS)
def test_reads_what_the_formula_reads(name, mode):
    size, strides = GRIDS[name]
    levels, coords = pyramid(size, strides), points(size)
    found = gather(levels, strides, coords, mode)
    read = getattr(oracle, mode)
    for b in range(2):
        for i in range(coords.shape[1]):
            parts = [read(x[b].numpy(), s, coords[b, i].tolist()) for x, s in zip(levels, strides, strict=True)]
            np.testing.assert_allclose(found[b, i], np.concatenate(parts), rtol=1e-12, atol=1e-12)


def test_nearest_at_voxels_is_index_by_stride():
    size, strides = GRIDS["3d"]
    voxels = torch.cartesian_prod(*(torch.arange(n) for n in size))
    levels = pyramid(size, strides, batch=1)
    found = gather(levels, strides, voxels[None].float())
    for level, stride, part in zip(levels, strides, found[0].split([x.shape[1] for x in levels], -1), strict=True):
        index = voxels // torch.tensor(stride)
        assert torch.equal(part, level[0][:, index[:, 0], index[:, 1], index[:, 2]].T)


def test_linear_reads_coordinates_back():
    """Levels that hold the position of their own voxels: reading gives the point itself, at every level, exactly."""
    size, strides = (8, 16, 12), [(1, 1, 1), (2, 2, 2), (2, 4, 4)]
    levels = []
    for stride in strides:
        axes = [torch.arange(n // s) * s + (s - 1) / 2 for n, s in zip(size, stride, strict=True)]
        levels.append(torch.stack(torch.meshgrid(*axes, indexing="ij"))[None])
    coords = torch.rand(1, 50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 12.0, 8.0]) + 1.5
    found = gather(levels, strides, coords, "linear")
    torch.testing.assert_close(found, coords.repeat(1, 1, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_gradient_goes_to_the_levels(mode):
    size, strides = (3, 4), [(1, 1), (2, 2)]
    levels = [level.requires_grad_() for level in pyramid(size, strides, batch=1)]
    coords = points(size, batch=1, n=6)
    assert torch.autograd.gradcheck(lambda *x: gather(x, strides, coords, mode), levels)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_coordinates_stay_exact_beside_half_precision_levels(mode):
    level = torch.arange(5000.0).view(1, 1, 5000, 1)
    coords = torch.tensor([[[4097.0, 0.0]]])
    found = gather([(level % 2).bfloat16()], [(1, 1)], coords, mode)
    assert found.dtype == torch.bfloat16
    assert found.item() == 1.0


def test_no_points():
    size, strides = GRIDS["2d"]
    levels = pyramid(size, strides)
    assert gather(levels, strides, torch.zeros(2, 0, 2), "linear").shape == (2, 0, 9)


@pytest.mark.parametrize("change", [{"mode": "cubic"}, {"strides": [(1, 1)]}, {"coords": torch.zeros(2, 1, 3)}])
def test_gather_refuses(change):
    size, strides = GRIDS["2d"]
    arguments = {"levels": pyramid(size, strides), "strides": strides, "coords": points(size), **change}
    with pytest.raises(ValueError, match=r"expected|do not fit"):
        gather(**arguments)


@pytest.mark.parametrize(("ratio", "size"), [((2, 2), (5, 7)), ((1, 3), (3, 11)), ((4, 1), (9, 4)), (2, (6, 8))])
def test_upsampling_repeats_and_crops(ratio, size):
    x = pyramid((3, 4), [(1, 1)])[0]
    ratios = (ratio, ratio) if isinstance(ratio, int) else ratio
    rows, columns = (torch.arange(n) // r for n, r in zip(size, ratios, strict=True))
    assert torch.equal(upsample_nearest(x, ratio, size), x[:, :, rows][..., columns])


def test_upsampling_by_any_integer():
    x = torch.arange(40.0).view(1, 1, 40, 1)
    for ratio in range(1, 33):
        expected = torch.arange(40 * ratio) // ratio
        assert torch.equal(upsample_nearest(x, (ratio, 1), (40 * ratio, 1)).flatten(), expected.float()), ratio


@pytest.mark.parametrize(("ratio", "size"), [((2, 2), (7, 8)), ((2, 2), (6, 8, 4)), ((2,), (6, 8))])
def test_upsampling_refuses(ratio, size):
    with pytest.raises(ValueError, match="does not cover"):
        upsample_nearest(torch.zeros(1, 1, 3, 4), ratio, size)


def test_level_widths_keep_the_levels_apart():
    widths = LevelWidths([2, 3, 5], 4)
    vectors = torch.randn(6, 7, 10, generator=torch.Generator().manual_seed(0))
    whole = widths(vectors)
    assert whole.shape == (6, 7, 12)
    vectors[..., 2:5] += 1
    changed = (widths(vectors) != whole).flatten(0, 1).any(0)
    assert changed.tolist() == [False] * 4 + [True] * 4 + [False] * 4

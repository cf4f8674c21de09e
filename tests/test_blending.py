"""Weighted sums of voxels against indexing one by one, and their gradients."""

from __future__ import annotations

import pytest
import torch

from nnunet_ssl.blending import blend


def inputs(grid: tuple[int, ...], points: int, corners: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    level = torch.randn(2, 3, *grid, generator=generator, dtype=dtype)
    size = level[0, 0].numel()
    voxels = torch.randint(0, size, (2, points, corners), generator=generator)
    weights = torch.rand(2, points, corners, generator=generator, dtype=dtype)
    weights[..., -1] = 0.0  # a corner that counts nowhere
    return level, voxels, weights


def one_by_one(level: torch.Tensor, voxels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    rows = []
    for image, numbers in enumerate(voxels.tolist()):
        flat = level[image].flatten(1)
        for point, corners in enumerate(numbers):
            parts = [flat[:, voxel] * (1 if weights is None else weights[image, point, k])
                     for k, voxel in enumerate(corners)]  # fmt: skip
            rows.append(torch.stack(parts).sum(0))
    return torch.stack(rows).view(*voxels.shape[:2], -1)


def channels_last(level: torch.Tensor) -> torch.Tensor:
    return level.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("grid", [(4, 5), (3, 4, 5), (1, 2, 1)], ids=str)  # the last: many points to a voxel
def test_values_and_gradients(grid, weighted, layout):
    level, voxels, weights = inputs(grid, 11, 4 if weighted else 1)
    weights = weights if weighted else None
    level = layout(level).requires_grad_()
    found, expected = blend(level, voxels, weights), one_by_one(level, voxels, weights)
    torch.testing.assert_close(found, expected)
    seed = torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, level, seed)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].stride() == level.stride()  # the layers that made the level would have to turn another layout
    assert torch.autograd.gradcheck(lambda x: blend(x, voxels, weights), level)


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last])
def test_half_precision_adds_up_in_single(layout):
    """A thousand points in one voxel: their gradients sum to 1,000, which bfloat16 stops counting to at 256."""
    level = layout(torch.ones(1, 2, 1, 2, dtype=torch.bfloat16)).requires_grad_()
    blend(level, torch.zeros(1, 1000, 1, dtype=torch.long)).sum().backward()
    assert level.grad.dtype == torch.bfloat16 and level.grad.flatten().tolist() == [1000.0, 0.0] * 2
    level, voxels, weights = inputs((3, 4), 5, 4)
    half = blend(layout(level.bfloat16()), voxels, weights.float())
    torch.testing.assert_close(half, one_by_one(level.bfloat16().double(), voxels, weights).bfloat16())


def test_no_points():
    level, voxels, weights = inputs((3, 4), 0, 4)
    assert blend(level, voxels, weights).shape == (2, 0, 3)

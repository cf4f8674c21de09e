import math

import pytest
import torch
from torch.nn import functional as F

from nnunet_ssl import diagnostics
from nnunet_ssl.diagnostics import alignment, effective_rank, level_std, retrieval_at_1, uniformity


def vectors(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[3, 1024])
def blocks(request, monkeypatch):
    """Work in blocks of few rows, or in one."""
    monkeypatch.setattr(diagnostics, "_ROWS", request.param)


@pytest.mark.usefixtures("blocks")
def test_retrieval_counts_both_directions():
    z = vectors(20, 8)
    assert retrieval_at_1(z, 3 * z) == 1.0
    assert retrieval_at_1(z, z.roll(1, 0)) == 0.0
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    b = torch.tensor([[1.0, 0.1], [1.0, 0.2], [-1.0, 0.1]])
    # a finds b: rows 0 and 2, and row 1 finds b1, its own; b finds a: rows 0 and 2, but b1 lies nearer to a0
    assert retrieval_at_1(a, b) == pytest.approx((3 / 3 + 2 / 3) / 2)


@pytest.mark.usefixtures("blocks")
def test_collapsed_vectors_retrieve_at_chance():
    z = torch.ones(10, 4)
    assert retrieval_at_1(z, z) == pytest.approx(0.1)
    assert retrieval_at_1(torch.zeros(10, 4), torch.zeros(10, 4)) == pytest.approx(0.1)


def test_retrieval_of_noise_is_near_chance():
    assert retrieval_at_1(vectors(500, 16), vectors(500, 16, seed=1)) < 0.02


def test_alignment():
    z = vectors(20, 8)
    assert alignment(z, 2 * z) == pytest.approx(0, abs=1e-6)
    assert alignment(z, -z) == pytest.approx(4)
    assert alignment(z, -z, alpha=1) == pytest.approx(2)


@pytest.mark.usefixtures("blocks")
def test_uniformity():
    z = vectors(20, 8)
    unit = F.normalize(z.double(), dim=1)
    distances = [(unit[i] - unit[j]).square().sum() for i in range(20) for j in range(i)]
    assert uniformity(z) == pytest.approx(torch.exp(-2 * torch.stack(distances)).mean().log().item(), rel=1e-5)
    assert uniformity(torch.ones(20, 8)) == pytest.approx(0, abs=1e-5)
    assert uniformity(z[:1]) == 0.0


def test_effective_rank():
    # +-e_i: centred, k equal singular values
    assert effective_rank(torch.cat([torch.eye(6), -torch.eye(6)])) == pytest.approx(6)
    line = torch.linspace(-1, 1, 50)[:, None] * torch.ones(1, 5)
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert effective_rank(line + 100) == pytest.approx(1, abs=1e-3)
    plane = vectors(400, 2) @ torch.linalg.qr(vectors(8, 2)).Q.T
    assert effective_rank(plane) == pytest.approx(2, abs=0.05)
    assert effective_rank(vectors(2000, 16)) > 15
    # wide and tall are the same
    assert effective_rank(vectors(5, 40)) <= 4


def test_rounding_of_collapsed_vectors_is_no_rank():
    z = F.normalize(torch.ones(200, 32), dim=1)
    assert effective_rank(z) == 1.0
    assert effective_rank(z * (1 + 6e-8 * vectors(200, 32).sign())) == 1.0
    assert effective_rank(torch.zeros(5, 3)) == 1.0


def test_level_std_is_per_level():
    z = torch.cat([vectors(50, 3), 4 * vectors(50, 2, seed=1), torch.ones(50, 4)], 1)
    found = level_std(z, [3, 2, 4])
    expected = [z[:, :3].std(0, correction=0).mean(), z[:, 3:5].std(0, correction=0).mean(), 0.0]
    assert found == pytest.approx([float(e) for e in expected])
    with pytest.raises(ValueError, match="add up to 8"):
        level_std(z, [3, 5])


def test_nan_is_passed_on_and_half_precision_is_widened():
    z = vectors(8, 4)
    assert retrieval_at_1(z.bfloat16(), z.bfloat16()) == 1.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert uniformity(z) == uniformity(z.clone())
        inside = uniformity(z)
    assert inside == uniformity(z)
    z[3, 2] = torch.nan
    found = [retrieval_at_1(z, z), alignment(z, z), uniformity(z), effective_rank(z), *level_std(z, [2, 2])[1:]]
    assert all(math.isnan(value) for value in found)


@pytest.mark.parametrize("measure", [uniformity, effective_rank, lambda z: retrieval_at_1(z, z)])
def test_refuses_no_rows(measure):
    with pytest.raises(ValueError, match="N >= 1"):
        measure(torch.zeros(0, 4))


def test_refuses_pairs_that_do_not_match():
    with pytest.raises(ValueError, match="expected two"):
        retrieval_at_1(torch.zeros(3, 4), torch.zeros(2, 4))

import pytest
import torch

from nnunet_ssl.losses import barlow_twins
from tests.oracles import losses as oracle


def pairs(n=6, d=3):
    generator = torch.Generator().manual_seed(0)
    z_a = torch.randn(n, d, generator=generator, dtype=torch.float64) + 2
    return z_a, z_a + 0.3 * torch.randn(n, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("lambda_off", [0.0, 5e-3, 1.0])
def test_equals_the_formula(lambda_off):
    z_a, z_b = pairs()
    expected = oracle.barlow_twins(z_a.numpy(), z_b.numpy(), lambda_off)
    assert barlow_twins(z_a, z_b, lambda_off).item() == pytest.approx(expected, rel=1e-10)


def test_default_weight():
    z_a, z_b = pairs()
    assert barlow_twins(z_a, z_b) == barlow_twins(z_a, z_b, 5e-3)


def test_gradient():
    z_a, z_b = (z.requires_grad_() for z in pairs())
    assert torch.autograd.gradcheck(barlow_twins, (z_a, z_b))


def test_half_precision_is_computed_in_float32():
    z_a, z_b = (z.bfloat16() for z in pairs(64, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = barlow_twins(z_a, z_b)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(barlow_twins(z_a.double(), z_b.double()).item(), rel=1e-5)


def test_a_dimension_that_never_varies_has_a_finite_gradient():
    z = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    z[:, 0] = 1.0
    z.requires_grad_()
    barlow_twins(z, z).backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("shapes", [((3, 2), (2, 2)), ((1, 2), (1, 2)), ((4,), (4,))])
def test_refuses(shapes):
    with pytest.raises(ValueError, match=r"expected two|at least 2"):
        barlow_twins(*(torch.ones(s) for s in shapes))

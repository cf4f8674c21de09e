import numpy as np
import pytest
import torch

from nnunet_ssl.losses import vicreg, vicreg_terms
from tests.oracles import losses as oracle


def pairs(n=6, d=3, scale=0.4):
    generator = torch.Generator().manual_seed(0)
    z_a = scale * torch.randn(n, d, generator=generator, dtype=torch.float64) + 2
    return z_a, z_a + 0.3 * torch.randn(n, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.0, 0.4, 3.0])
@pytest.mark.parametrize("eps", [1e-4, 0.1])
def test_terms_equal_the_formula(scale, eps):
    z_a, z_b = pairs(scale=scale)
    terms = {name: term.item() for name, term in vicreg_terms(z_a, z_b, eps).items()}
    assert terms == pytest.approx(oracle.vicreg(z_a, z_b, eps), rel=1e-10, abs=1e-14)


def test_weighs_the_terms():
    z_a, z_b = pairs()
    terms = oracle.vicreg(z_a, z_b, 1e-4)
    expected = 25 * terms["similarity"] + 25 * terms["variance"] + terms["covariance"]
    assert vicreg(z_a, z_b).item() == pytest.approx(expected, rel=1e-10)
    expected = 2 * terms["similarity"] + 3 * terms["variance"] + 5 * terms["covariance"]
    assert vicreg(z_a, z_b, sim=2, var=3, cov=5).item() == pytest.approx(expected, rel=1e-10)


def test_gradient():
    z_a, z_b = (z.requires_grad_() for z in pairs())
    assert torch.autograd.gradcheck(vicreg, (z_a, z_b))


def test_half_precision_is_computed_in_float32():
    z_a, z_b = (z.bfloat16() for z in pairs(64, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = vicreg(z_a, z_b)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(vicreg(z_a.double(), z_b.double()).item(), rel=1e-5)


def test_collapsed_embeddings_are_punished_with_a_finite_gradient():
    z = torch.ones(8, 4, requires_grad=True)
    loss = vicreg(z, z)
    loss.backward()
    assert loss.item() == pytest.approx(25 * (1 - np.sqrt(1e-4)), rel=1e-5)
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("shapes", [((3, 2), (2, 2)), ((1, 2), (1, 2)), ((4,), (4,))])
def test_refuses(shapes):
    with pytest.raises(ValueError, match=r"expected two|at least 2"):
        vicreg(*(torch.ones(s) for s in shapes))

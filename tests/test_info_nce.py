import json
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nnunet_ssl import tiles
from nnunet_ssl.losses import info_nce
from nnunet_ssl.objectives.vox2vec import Recipe
from tests.oracles import losses as oracle

MODULE = import_module("nnunet_ssl.losses.info_nce")


def pairs(n, d, noise=1.0, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z_a = torch.randn(n, d, generator=generator, dtype=torch.float64)
    z_b = z_a + noise * torch.randn(n, d, generator=generator, dtype=torch.float64)
    return tuple(F.normalize(z, dim=1).to(dtype) for z in (z_a, z_b))


def terms_written_out(z_a, z_b, temperature):
    """(2N,) of every embedding: those of the first view, then of the second."""
    joint = torch.cat([z_a, z_b])
    logits = (joint @ joint.T / temperature).masked_fill(torch.eye(len(joint), dtype=torch.bool), -torch.inf)
    n = len(z_a)
    positives = torch.cat([logits.diagonal(n), logits.diagonal(-n)])
    return logits.logsumexp(1) - positives


def written_out(z_a, z_b, temperature):
    return terms_written_out(z_a, z_b, temperature).mean()


def value_and_gradient(loss, z_a, z_b, temperature):
    z_a, z_b = (z.clone().requires_grad_() for z in (z_a, z_b))
    value = loss(z_a, z_b, temperature)
    value.backward()
    return value.item(), torch.cat([z_a.grad, z_b.grad]).double()


@pytest.mark.parametrize("temperature", [0.02, 0.1, 0.53])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_equals_the_formula(n, temperature):
    z_a, z_b = pairs(n, 4)
    expected = oracle.info_nce(z_a, z_b, temperature)
    np.testing.assert_allclose(info_nce(z_a, z_b, temperature, reduction="none"), expected, rtol=1e-12, atol=1e-13)
    assert info_nce(z_a, z_b, temperature).item() == pytest.approx(expected.mean(), rel=1e-12, abs=1e-13)
    assert info_nce(z_a, z_b, temperature).dtype == torch.float64


@pytest.mark.parametrize("size", [1, 2, 3, 5, 14, 100])
def test_any_tile_gives_the_same(monkeypatch, size):
    z_a, z_b = pairs(7, 4)
    expected = value_and_gradient(written_out, z_a, z_b, 0.1)
    monkeypatch.setattr(MODULE, "_TILE", {"cpu": size})
    found = value_and_gradient(info_nce, z_a, z_b, 0.1)
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradient_for_any_weights_of_the_pairs(monkeypatch, reduction):
    monkeypatch.setattr(MODULE, "_TILE", {"cpu": 4})
    z_a, z_b = (z.requires_grad_() for z in pairs(5, 3))
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, 0.3, reduction), (z_a, z_b))


@pytest.mark.parametrize("temperature", [0.02, 0.1, 0.53])
def test_float32_is_as_exact_as_the_formula_written_out(monkeypatch, temperature):
    """Error against float64 at most twice the written-out float32 formula's, and below 1e-5, from aligned to chance."""
    monkeypatch.setattr(MODULE, "_TILE", {"cpu": 192})
    ours, plain = np.zeros(2), np.zeros(2)
    for noise in (0.05, 1.0, 5.0):
        for n, d in ((5, 8), (300, 128)):
            z_a, z_b = pairs(n, d, noise, dtype=torch.float32)
            value, gradient = value_and_gradient(written_out, z_a.double(), z_b.double(), temperature)
            for loss, worst in ((info_nce, ours), (written_out, plain)):
                v, g = value_and_gradient(loss, z_a, z_b, temperature)
                np.maximum(worst, [abs(v - value), (g - gradient).abs().max()], out=worst)
    assert (ours <= 2 * plain).all(), (ours, plain)
    assert (ours < 1e-5).all(), ours


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("noise", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("temperature", [0.1, 0.53])
def test_reduced_precision_changes_the_gradient_by_less_than_a_hundredth(monkeypatch, temperature, noise):
    monkeypatch.setattr(MODULE, "_TILE", {"cpu": 192})
    for seed in range(3):
        z_a, z_b = pairs(300, 64, noise, seed, dtype=torch.float32)
        value, gradient = value_and_gradient(written_out, z_a.double(), z_b.double(), temperature)
        v, g = value_and_gradient(partial(info_nce, precision="reduced"), z_a, z_b, temperature)
        assert 1e-7 < relative(g, gradient) < 1e-2
        assert v == pytest.approx(value, rel=1e-2)


@pytest.mark.parametrize(("scale", "temperature", "dtype"), [(1, 0.05, torch.float32), (3, 0.53, torch.float32),
                                                             (1, 0.1, torch.float64)])  # fmt: skip
def test_reduced_precision_is_refrained_from_where_it_would_cost_more(scale, temperature, dtype):
    z_a, z_b = (scale * z for z in pairs(30, 8, dtype=dtype))
    expected = value_and_gradient(info_nce, z_a, z_b, temperature)
    found = value_and_gradient(partial(info_nce, precision="reduced"), z_a, z_b, temperature)
    assert found[0] == expected[0] and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("bound", [0.0, 1000.0])
@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_sums_with_and_without_a_shift_are_the_same(monkeypatch, n, bound):
    """Both ways are exact where both can be used; only exponents' size decides between them."""
    monkeypatch.setattr(MODULE, "_PLAIN", bound)
    monkeypatch.setattr(MODULE, "_TILE", {"cpu": 16})
    z_a, z_b = pairs(n, 8)
    expected = oracle.info_nce(z_a, z_b, 0.1)
    np.testing.assert_allclose(info_nce(z_a, z_b, 0.1, reduction="none"), expected, rtol=1e-12, atol=1e-13)
    _, gradient = value_and_gradient(written_out, z_a, z_b, 0.1)
    torch.testing.assert_close(value_and_gradient(info_nce, z_a, z_b, 0.1)[1], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("precision", ["float32", "reduced"])
def test_a_build_without_the_fast_product_gives_the_same(monkeypatch, precision):
    z_a, z_b = pairs(40, 12, dtype=torch.float32)
    loss = partial(info_nce, precision=precision)
    expected = value_and_gradient(loss, z_a, z_b, 0.1)
    monkeypatch.setattr(tiles, "_ONEDNN", None)
    found = value_and_gradient(loss, z_a, z_b, 0.1)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "m", "k"), [(1, 1, 1), (5, 3, 7), (33, 64, 16)])
def test_products_of_tiles(n, m, k, dtype):
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(rows, k, generator=generator).to(dtype) for rows in (n, m))
    expected = left.double() @ right.double().T
    digits = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for one, other in ((left, right), (left.T.contiguous().T, right), (left, right.T.contiguous().T)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = tiles.outer_product(one, other)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=digits, atol=digits)


def test_a_converged_pair_keeps_its_digits():
    """Losses near 0 are differences of large numbers; rounding must cancel as it does in the written-out formula."""
    z_a, z_b = pairs(7, 32, noise=0.05, dtype=torch.float32)
    value, gradient = value_and_gradient(info_nce, z_a, z_b, 0.02)
    assert value < 1e-9
    assert gradient.abs().max() < 1e-9


def test_large_inputs_do_not_overflow():
    z_a, z_b = (30 * z for z in pairs(6, 4, dtype=torch.float32))
    value, gradient = value_and_gradient(info_nce, z_a, z_b, 0.05)
    assert value == pytest.approx(oracle.info_nce(z_a, z_b, 0.05).mean(), rel=1e-5)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    z_a, z_b = pairs(9, 8, dtype=dtype)
    expected = value_and_gradient(info_nce, z_a.float(), z_b.float(), 0.1)
    a, b = z_a.clone().requires_grad_(), z_b.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(a, b, 0.1)
        loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == expected[0]
    assert a.grad.dtype == dtype
    torch.testing.assert_close(torch.cat([a.grad, b.grad]), expected[1].to(dtype))


def test_inputs_need_not_be_contiguous():
    z_a, z_b = pairs(9, 8, dtype=torch.float32)
    transposed = (z.T.contiguous().T for z in (z_a, z_b))
    sparse = torch.stack([z_a, z_b], 1)
    expected = info_nce(z_a, z_b)
    assert info_nce(*transposed) == expected
    assert info_nce(sparse[:, 0], sparse[:, 1]) == expected


def test_one_pair_has_no_negative():
    value, gradient = value_and_gradient(info_nce, *pairs(1, 4), 0.1)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("precision", [*MODULE.PRECISIONS, "half"])
def test_a_recipe_takes_what_the_loss_takes(precision):
    recipe = Recipe(loss_precision=precision)
    if precision in MODULE.PRECISIONS:
        recipe.validate()
    else:
        with pytest.raises(ValueError, match="loss_precision"):
            recipe.validate()


def test_nan_is_passed_on():
    z_a, z_b = pairs(4, 4)
    z_a[3] = torch.nan
    assert info_nce(z_a, z_b).isnan()


@pytest.mark.parametrize(
    ("shapes", "arguments"),
    [
        (((3, 4), (2, 4)), {}),
        (((0, 4), (0, 4)), {}),
        (((3,), (3,)), {}),
        (((3, 4), (3, 4)), {"temperature": 0.0}),
        (((3, 4), (3, 4)), {"temperature": float("nan")}),
        (((3, 4), (3, 4)), {"reduction": "sum"}),
        (((3, 4), (3, 4)), {"precision": "half"}),
    ],
)
def test_refuses(shapes, arguments):
    with pytest.raises(ValueError, match="expected"):
        info_nce(*(torch.ones(s) for s in shapes), **arguments)


def test_memory_grows_with_the_points_not_with_their_pairs():
    """A whole batch as published, 10 x 1,024 pairs: the similarities of two views alone would take 400 MiB."""
    benchmark = Path(__file__).parents[1] / "benchmarks" / "loss_memory.py"
    command = [sys.executable, str(benchmark), "--pairs", "10240", "--width", "128", "--only", "tiled", "--json"]
    run = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", timeout=600
    )
    assert run.returncode == 0, run.stderr
    (result,) = json.loads(run.stdout)
    assert 0 < result["mib"] < 80

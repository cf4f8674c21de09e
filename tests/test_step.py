"""The training step: geometry end to end, masked points, losses, and several processes."""

import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from nnunet_ssl import losses, views
from nnunet_ssl.objectives.vox2vec import Recipe
from nnunet_ssl.pyramid import gather
from nnunet_ssl.step import criterion, embed, gather_with_gradient, step
from tests.view_volumes import AFFINE, CROP, GRIDS, draw


class Pointwise(nn.Module):
    """A network of one level whose features are a linear map of the image."""

    def __init__(self, channels, width=8, mode="nearest"):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(width, channels, generator=generator))
        self.mode = mode

    def forward(self, a, b, coords_a, coords_b, valid):
        ones = [(1,) * coords_a.shape[-1]]
        raw = [gather([v], ones, c, mode=self.mode)[valid] for v, c in ((a, coords_a), (b, coords_b))]
        z = [nn.functional.normalize(r @ self.weight.T, dim=1) for r in raw]
        return (*z, *raw)


def a_pair(recipe=CROP, name="3d", seeds=(0, 1)):
    patch, spacing = GRIDS[name][1:]
    samples = []
    for seed in seeds:
        volume, _, drawn = draw(name, recipe, seed)
        size = views.box_size(patch, spacing, recipe)
        starts = (drawn.start_a, drawn.start_b)
        samples.append((drawn, *(views.read_box(volume.read_image, volume.shape, start, size) for start in starts)))
    return views.assemble(views.collate(samples), patch, recipe)


@pytest.mark.parametrize("name", GRIDS)
def test_an_identity_network_embeds_the_same_coordinates(name):
    pair = a_pair(CROP, name)
    found = embed(Pointwise(pair.a.shape[1]), pair)
    assert len(found.raw_a) == pair.valid.sum()
    assert torch.equal(found.raw_a, found.raw_b)
    assert torch.equal(found.z_a, found.z_b)


@pytest.mark.parametrize("recipe", [CROP, AFFINE], ids=["crop", "affine"])
def test_invalid_points_change_nothing(recipe):
    recipe = replace(recipe, voxels_per_pair=3000)  # more than there are
    pair, network = a_pair(recipe), Pointwise(4, mode=recipe.level_reading)
    assert not pair.valid.all()
    loss, _, _ = step(network, pair, recipe)
    loss.backward()
    gradient = network.weight.grad.clone()
    network.weight.grad = None
    poisoned = replace(pair, coords_a=pair.coords_a.clone(), coords_b=pair.coords_b.clone())
    for coords in (poisoned.coords_a, poisoned.coords_b):
        coords[~pair.valid] = 1.0
    again, _, _ = step(network, poisoned, recipe)
    again.backward()
    assert torch.isfinite(loss)
    assert torch.equal(loss, again)
    assert torch.equal(gradient, network.weight.grad)


def test_vectors_read_at_invalid_points_never_reach_the_loss():
    recipe = replace(CROP, voxels_per_pair=3000)
    pair = a_pair(recipe)

    class Poisoned(Pointwise):
        def forward(self, a, b, coords_a, coords_b, valid):
            for view, coords in ((a, coords_a), (b, coords_b)):
                used = torch.zeros(len(a), *a.shape[2:], dtype=torch.bool)
                for i in range(len(a)):
                    used[(i, *coords[i][valid[i]].long().T)] = True
                view.masked_fill_(~used[:, None], torch.nan)  # every voxel that no valid point reads
            return super().forward(a, b, coords_a, coords_b, valid)

    network = Poisoned(4)
    loss, _, found = step(network, replace(pair, a=pair.a.clone(), b=pair.b.clone()), recipe)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(network.weight.grad).all()
    assert torch.equal(loss.detach(), step(Pointwise(4), pair, recipe)[0].detach())
    assert not found.z_a.requires_grad


@pytest.mark.parametrize("loss", ["info_nce", "vicreg", "barlow_twins"])
def test_the_recipe_names_the_loss(loss):
    generator = torch.Generator().manual_seed(0)
    z_a, z_b = torch.randn(2, 50, 8, generator=generator)
    recipe = Recipe(loss=loss, temperature=0.4, vicreg_sim=3.0, vicreg_var=2.0, vicreg_cov=0.5, lambda_off=0.1)
    value, terms = criterion(recipe)(z_a, z_b)
    expected = {
        "info_nce": lambda: losses.info_nce(z_a, z_b, temperature=0.4),
        "vicreg": lambda: losses.vicreg(z_a, z_b, sim=3.0, var=2.0, cov=0.5),
        "barlow_twins": lambda: losses.barlow_twins(z_a, z_b, lambda_off=0.1),
    }[loss]()
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert not any(term.requires_grad for term in terms.values())
    assert set(terms) == ({"similarity", "variance", "covariance"} if loss == "vicreg" else {loss})


def test_an_unknown_loss_and_a_network_that_disagrees_with_itself_are_refused():
    with pytest.raises(ValueError, match="'ntxent'; expected one of 'info_nce'"):
        criterion(Recipe(loss="ntxent"))
    pair = a_pair()
    with pytest.raises(ValueError, match=r"returned \[3, 4\] rows"):
        embed(lambda *_: (torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(4, 2)), pair)


def test_half_precision_embeddings_give_a_float32_loss():
    pair, network = a_pair(), Pointwise(4)

    def half(*inputs):
        return tuple(x.bfloat16() for x in network(*inputs))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, terms, found = step(half, pair, CROP)
    assert loss.dtype == found.z_a.dtype == found.raw_b.dtype == terms["info_nce"].dtype == torch.float32
    rounded = [z.detach().bfloat16().float() for z in network(*vars(pair).values())[:2]]
    assert loss.detach() == pytest.approx(float(losses.info_nce(*rounded)), rel=1e-3)


def test_a_gradient_step_lowers_the_loss():
    pair, network = a_pair(), Pointwise(4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    values = []
    for _ in range(5):
        loss, _, _ = step(network, pair, CROP)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < values[0]


ROWS = (7, 4)  # of the two processes


def _inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, sum(ROWS), 5, generator=generator), torch.randn(5, 3, generator=generator)


def _loss(x, weight, recipe):
    z_a, z_b = (nn.functional.normalize(v @ weight, dim=1) for v in x)
    return criterion(recipe)(z_a, z_b)[0]


def _process(rank, folder, names):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    x, weight = _inputs()
    own = slice(0, ROWS[0]) if rank == 0 else slice(ROWS[0], None)
    out = {"rows": gather_with_gradient(x[0, own]), "none": _loss(x[:, own], weight, Recipe(gather="none"))}
    for name in names:
        leaf = weight.clone().requires_grad_()
        value = _loss(x[:, own], leaf, Recipe(loss=name))
        value.backward()
        dist.all_reduce(leaf.grad)
        out[name] = (value.detach(), leaf.grad / 2)  # DistributedDataParallel averages
    torch.save(out, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path):
    names = ["info_nce", "vicreg", "barlow_twins"]
    mp.spawn(_process, args=(str(tmp_path), names), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    x, weight = _inputs()
    for rank in range(2):
        assert torch.equal(found[rank]["rows"], x[0])
    for name in names:
        leaf = weight.clone().requires_grad_()
        value = _loss(x, leaf, Recipe(loss=name))
        value.backward()
        for rank in range(2):
            assert torch.allclose(found[rank][name][0], value.detach(), rtol=1e-5), name
            assert torch.allclose(found[rank][name][1], leaf.grad, rtol=1e-4, atol=1e-6), name
    alone = [_loss(x[:, : ROWS[0]], weight, Recipe()), _loss(x[:, ROWS[0] :], weight, Recipe())]
    assert np.allclose([float(f["none"]) for f in found], [float(v) for v in alone], rtol=1e-5)
    assert not np.allclose(float(alone[0]), float(alone[1]))


def test_one_process_gathers_nothing():
    z = torch.randn(4, 3)
    assert gather_with_gradient(z) is z

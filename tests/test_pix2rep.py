"""Pix2Rep: its numbers, equivariance where it can be exact, and what is masked."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_ssl import geometry, losses, phi, transformed
from nnunet_ssl.heads import Projector
from nnunet_ssl.objectives.pix2rep import Recipe
from nnunet_ssl.pyramid import gather
from nnunet_ssl.step import step
from nnunet_ssl.views import ViewPair
from nnunet_ssl.warp import read
from tests.oracles import losses as slow
from tests.view_volumes import GRIDS, Volume


def test_defaults_are_those_of_the_published_code():
    recipe = Recipe()
    recipe.validate()
    assert (recipe.loss, recipe.temperature, recipe.lambda_off) == ("info_nce", 0.53, 5e-3)
    assert recipe.volumes_per_batch * recipe.points((128, 128)) == 1000
    assert (recipe.identity_p, recipe.crop_side, recipe.rotation_deg) == (0.3, [0.33, 0.95], None)
    assert (recipe.noise_p, recipe.noise_std, recipe.blur_p, recipe.blur_sigma) == (0.3, [0, 0.5], 0.5, [0, 1.3])
    assert (recipe.gamma_p, recipe.log_gamma) == (0.9, [-0.05, 0.05])
    assert (recipe.bias_p, recipe.bias_coefficient, recipe.inversion_p) == (0.75, 0.9, 0.35)
    assert (recipe.optimizer, recipe.initial_lr) == ("adam", 4.7e-4)
    assert (recipe.hidden_widths(1024), recipe.embedding_width, recipe.read_levels(6)) == ([256], 256, 1)
    assert recipe.mask_invalid and recipe.outside == "border" and recipe.level_reading == "linear"


def test_every_field_has_a_rule_and_travels_through_json():
    assert {field.name for field in dataclasses.fields(Recipe)} == set(Recipe.RULES)
    recipe = Recipe(levels="all", voxels_per_pair="all", view_side=[0.3, 0.8], rotation_deg=[10, 0, 0])
    recipe.validate()
    assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert (recipe.read_levels(6), Recipe(levels=2).read_levels(6), Recipe(levels=9).read_levels(6)) == (6, 2, 6)
    assert recipe.points((4, 5, 6)) == 120 and Recipe(voxels_per_pair=500).points((4, 5, 6)) == 120


BAD = [
    ("levels", 0, "'all' or a whole number >= 1"), ("levels", "finest", "'all'"), ("voxels_per_pair", 1, "'all' or"),
    ("objective", "vox2vec", "'pix2rep'"), ("view_side", [0.0, 0.5], "null or"), ("crop_side", [0.9, 0.3], "least"),
    ("elastic_amount", [0.0, 1.5], "<= 1"), ("elastic_spacing", 0.0, "> 0"), ("mask_invalid", 1, "true or false"),
    ("rotation_deg", 200.0, "<= 180"), ("intensity", "hu", "'auto' or 'none'"), ("identity_p", 1.1, "<= 1"),
    ("representation_channels", 0, "null or a whole number"), ("bias_coefficient", -1.0, ">= 0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "expected"), BAD, ids=str)
def test_bad_values_are_refused_by_name_with_what_is_allowed(name, value, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        Recipe(**{name: value}).validate()
    assert str(caught.value).startswith(f"{name} is {value!r}")


def exact_psi(kind, patch):
    """Transforms that permute the voxels of a patch with two equal sides."""
    ndim = len(patch)
    if kind == "flips":
        return geometry.flip(patch, range(ndim))
    turn = geometry.rotation([np.pi / 2] if ndim == 2 else [np.pi / 2, 0, 0])
    return geometry.linear(np.rint(turn), (np.asarray(patch) - 1) / 2)


@pytest.mark.parametrize("kind", ["flips", "quarter turn"])
@pytest.mark.parametrize("patch", [(12, 12), (6, 10, 10)])
@pytest.mark.parametrize("loss", ["info_nce", "barlow_twins"])
def test_a_pointwise_network_is_equivariant_exactly(kind, patch, loss):
    """Quarter turns and flips permute the pairs, so the loss is that of the untransformed pair."""
    torch.manual_seed(0)
    ndim, recipe = len(patch), Recipe(voxels_per_pair="all", loss=loss)
    pointwise = {2: nn.Conv2d, 3: nn.Conv3d}[ndim](1, 5, 1)
    projector = nn.Sequential(nn.Linear(5, 4))

    def network(a, b, coords_a, coords_b, valid):
        raw = [gather([pointwise(v)], [(1,) * ndim], c, "linear")[valid] for v, c in ((a, coords_a), (b, coords_b))]
        z = [projector(r) for r in raw]
        z = [nn.functional.normalize(v, dim=1) for v in z] if recipe.normalised else z
        return *z, *raw

    box = torch.randn(2, 1, *patch)
    found = {}
    for name, psi in (("still", geometry.identity(ndim)), ("moved", exact_psi(kind, patch))):
        identity = torch.eye(ndim + 1).expand(2, -1, -1)
        bounds = torch.tensor([[0.0] * ndim, [p - 1.0 for p in patch]]).expand(2, -1, -1)
        batch = transformed.PhiBatch(
            box, torch.ones(2, *patch, dtype=torch.bool), bounds, identity,
            torch.as_tensor(psi, dtype=torch.float32).expand(2, -1, -1), torch.zeros(2, ndim, *(4,) * ndim),
        )  # fmt: skip
        pair = transformed.assemble(batch, patch, recipe)
        assert pair.valid.all()
        found[name] = step(network, pair, recipe)[0]
    assert not torch.equal(pair.a, pair.b)
    assert abs(found["still"] - found["moved"]) < 1e-5 * max(1.0, float(found["still"].detach().abs()))


@pytest.mark.parametrize("name", ["2d", "3d"])
def test_reading_at_mapped_points_is_warping_the_map(name):
    """phi(f(x)) at b's integer voxels, the paper's way, equals reading f(x) at psi of them."""
    shape, patch, spacing = GRIDS[name]
    recipe = Recipe(voxels_per_pair="all", identity_p=0.0, elastic_p=1.0)
    volume = Volume(shape)
    drawn = phi.draw_pair(np.random.default_rng(1), shape, patch, spacing, recipe, None, volume.read_mask)
    sample = phi.read_pair(drawn, shape, phi.box_size(patch, spacing, recipe), volume.read_image, volume.read_mask)
    batch = transformed.collate([sample])
    pair = transformed.assemble(batch, patch, recipe)
    features = torch.randn(1, 7, *patch)
    warped = read(features, transformed.places(batch, patch, recipe)).flatten(2).transpose(1, 2)
    read_at = gather([features], [(1,) * len(patch)], pair.coords_a, "linear")
    inside = pair.valid & ((pair.coords_a > 0) & (pair.coords_a < torch.tensor(patch) - 1.0)).all(-1)
    assert inside.sum() > 50 and (warped - read_at)[inside].abs().max() < 1e-5


def test_masked_points_change_nothing():
    """NaN at the places that only masked points read: loss and gradient stay what they were."""
    torch.manual_seed(0)
    recipe, projector = Recipe(), Projector(3, [8], 4, l2=True)
    features = torch.randn(2, 3, 10, 10)
    coords = torch.randint(0, 5, (2, 12, 2)).float()
    valid = torch.rand(2, 12) < 0.7
    coords[~valid] = 8.0
    losses_, gradients = [], []
    for poison in (0.0, float("nan")):
        maps = features.clone()
        maps[:, :, 7:, 7:] = poison
        maps.requires_grad_()

        def network(a, b, coords_a, coords_b, valid, maps=maps):
            raw = gather([maps], [(1, 1)], coords_a, "linear")[valid]
            return projector(raw), projector(raw * 2), raw, raw

        value, _, _ = step(network, ViewPair(features, features, coords, coords, valid), recipe)
        value.backward()
        losses_.append(value.detach())
        gradients.append(maps.grad[:, :, :7, :7])
    assert losses_[0].isfinite() and torch.equal(*losses_) and torch.equal(*gradients)
    assert gradients[0].abs().sum() > 0


def test_nt_xent_is_info_nce_at_the_papers_temperature():
    z = [nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(s)), dim=1) for s in (0, 1)]
    found = losses.info_nce(z[0].double(), z[1].double(), temperature=Recipe().temperature)
    assert abs(found - slow.info_nce(*(v.double() for v in z), 0.53).mean()) < 1e-12

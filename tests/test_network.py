"""The pyramid of nnU-Net's networks and the pretraining wrapper."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.network import PretrainNetwork, VoxelProjector, build_backbone
from nnunet_ssl.nnunet.pyramid_of import pyramid_channels, pyramid_levels, pyramid_strides
from nnunet_ssl.nnunet.widening import WidenedNetwork
from nnunet_ssl.objectives.pix2rep import Recipe as Pix2RepRecipe
from nnunet_ssl.objectives.vox2vec import Recipe
from tests.tiny_dataset import _architecture

RECIPE = Recipe(projector_hidden=[16], projector_out=8)
ANISOTROPIC = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
KINDS = [("plain", 3, None), ("resenc", 3, None), ("fpn", 3, None), ("plain", 2, None), ("resenc", 2, None),
         ("plain", 3, ANISOTROPIC), ("resenc", 3, ANISOTROPIC), ("fpn", 3, ANISOTROPIC)]  # fmt: skip
KIND = pytest.mark.parametrize("kind, ndim, strides", KINDS)


def backbone(kind: str, ndim: int, strides: list | None = None, norm: str = "instance", channels: int = 2) -> nn.Module:
    features = (6, 8, 10)
    architecture = _architecture(kind, ndim, features, strides or [[1] * ndim] + [[2] * ndim] * 2, norm)
    if strides and kind != "fpn":  # as nnU-Net plans them for thick slices
        architecture["arch_kwargs"]["kernel_sizes"] = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
    manager = SimpleNamespace(
        network_arch_class_name=architecture["network_class_name"],
        network_arch_init_kwargs=architecture["arch_kwargs"],
        network_arch_init_kwargs_req_import=architecture["_kw_requires_import"],
        configuration={},
    )
    return build_backbone(manager, channels, 3, True)


def inputs(ndim: int, channels: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, channels, *(8,) * ndim, generator=generator) for _ in range(2))
    coords_a, coords_b = (torch.randint(0, 8, (2, 20, ndim), generator=generator).float() for _ in range(2))
    return a, b, coords_a, coords_b, torch.rand(2, 20, generator=generator) < 0.8


@KIND
def test_levels(kind: str, ndim: int, strides: list | None) -> None:
    network = backbone(kind, ndim, strides).eval()
    x = inputs(ndim)[0]
    levels = pyramid_levels(network, x)
    cumulative = pyramid_strides(network)
    assert [level.shape[1] for level in levels] == pyramid_channels(network)
    expected = [tuple(-(-8 // s) for s in stride) for stride in cumulative]
    assert [tuple(level.shape[2:]) for level in levels] == expected
    assert cumulative[0] == (1,) * ndim and cumulative[-1] == ((2, 4, 4) if strides else (4,) * ndim)
    # What the stock forward pass makes of the same maps: its segmentation layers, finest first.
    heads = list(network.decoder.seg_layers)[::-1]
    for level, head, logits in zip(levels, heads, network(x), strict=False):
        torch.testing.assert_close(head(level), logits)


@KIND
def test_wrapper(kind: str, ndim: int, strides: list | None) -> None:
    stock = backbone(kind, ndim, strides)
    keys = set(stock.state_dict())
    network = PretrainNetwork(stock, RECIPE)
    extra = set(network.state_dict()) - keys
    assert keys <= set(network.state_dict()) and all(key.startswith("projector.") for key in extra) and extra
    views = inputs(ndim)
    z_a, z_b, raw_a, raw_b = network(*views)
    points, width = int(views[-1].sum()), sum(network.channels)
    assert z_a.shape == z_b.shape == (points, 8) and raw_a.shape == raw_b.shape == (points, width)
    torch.testing.assert_close(z_a.norm(dim=1), torch.ones(points))
    (z_a * z_b.roll(1, 0)).sum().backward()
    for name, parameter in network.named_parameters():
        if "seg_layers" in name:
            assert not parameter.requires_grad, name
        else:
            assert parameter.grad is not None, f"{name} never learns, which stops training in several processes"


def test_vectors_are_those_of_the_pair() -> None:
    """Row i of raw_a is read in view a at coords_a, also when both views pass together."""
    network = PretrainNetwork(backbone("plain", 3), RECIPE).eval()
    a, b, coords_a, coords_b, valid = inputs(3)
    _, _, raw_a, raw_b = network(a, b, coords_a, coords_b, valid)
    rows = valid.nonzero()
    for view, coords, raw in ((a, coords_a, raw_a), (b, coords_b, raw_b)):
        levels = network.levels(view)
        for row in (0, 7, len(rows) - 1):
            i, n = rows[row]
            z, y, x = coords[i, n].long().tolist()
            parts = [level[i, :, z // s, y // s, x // s] for level, s in zip(levels, (1, 2, 4), strict=True)]
            torch.testing.assert_close(raw[row], torch.cat(parts))


def test_batch_norm_sees_one_view_at_a_time() -> None:
    network = PretrainNetwork(backbone("plain", 3, norm="batch"), RECIPE)
    assert network.separate_views and not PretrainNetwork(backbone("plain", 3), RECIPE).separate_views
    seen = []
    network.encoder.register_forward_hook(lambda _, arguments, __: seen.append(len(arguments[0])))
    network(*inputs(3))
    assert seen == [2, 2]


@pytest.mark.parametrize("changes, rows", [({"level_width": 4}, 12), ({"loss": "vicreg"}, 24)])
def test_projector(changes: dict, rows: int) -> None:
    recipe = Recipe(**{"projector_out": 8, "projector_hidden": [16], **changes})
    network = PretrainNetwork(backbone("plain", 3), recipe)
    first = next(m for m in network.projector.mlp.modules() if isinstance(m, nn.Linear))
    assert first.in_features == rows
    z_a = network(*inputs(3))[0]
    assert torch.allclose(z_a.norm(dim=1), torch.ones(len(z_a))) == (recipe.loss == "info_nce")
    assert any(isinstance(m, nn.LayerNorm) for m in network.modules()) == (recipe.loss == "vicreg")


def test_projector_of_vicreg_is_as_wide_as_published() -> None:
    with torch.device("meta"):
        projector = VoxelProjector([16, 32], Recipe(loss="vicreg"))
    layers = [m for m in projector.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [(48, 8192), (8192, 8192), (8192, 8192)]


def test_refused() -> None:
    network = PretrainNetwork(backbone("plain", 3), RECIPE)
    with pytest.raises(UserError, match="adapt"):
        network(inputs(3)[0])
    with pytest.raises(UserError, match="no pyramid"):
        pyramid_levels(nn.Conv3d(1, 1, 1), inputs(3)[0])


def test_levels_compile_into_one_graph() -> None:
    """As the trainer compiles them on a GPU; the keys of the state dict stay the stock ones."""
    network = PretrainNetwork(backbone("plain", 3), RECIPE)
    expected, keys = network(*inputs(3))[0], set(network.state_dict())
    network.levels = torch.compile(network.levels, backend="aot_eager", fullgraph=True)
    found = network(*inputs(3))[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    found.sum().backward()
    assert set(network.state_dict()) == keys and network.encoder.stages[0][0].convs[0].conv.weight.grad is not None


@pytest.mark.parametrize("width", [6, 12], ids=["as wide as it was", "wider"])
@pytest.mark.parametrize("reading", ["linear", "nearest"])
@pytest.mark.parametrize("kind, ndim", [("plain", 2), ("resenc", 3)])
def test_widening_few_points_is_reading_the_widened_map(kind: str, ndim: int, reading: str, width: int) -> None:
    """Embeddings, voxel vectors and the gradients of all parameters, without the map that costs most of the memory."""
    torch.manual_seed(0)
    recipe = Pix2RepRecipe(representation_channels=width, reading=reading, projector_hidden=[16], projector_out=8)
    network = PretrainNetwork(WidenedNetwork(backbone(kind, ndim), width), recipe).double()
    with torch.no_grad():  # an affine part that would show
        network.representation[1].weight.uniform_(0.5, 2.0)
        network.representation[1].bias.normal_()
    views = [x.double() if x.is_floating_point() else x for x in inputs(ndim)]
    views[2] += 0.3
    few = [*views[:2], *(x[:, : 8**ndim // 2**ndim - 1] for x in views[2:])]
    found = []
    for late in (False, True):
        network._widens_late = lambda points, view, late=late: late
        network.zero_grad()
        answers = network(*few)
        sum(x.square().sum() for x in answers).backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
        found.append((answers, gradients))
    assert all(gradient is not None for gradient in found[1][1].values())  # DDP waits for every one
    torch.testing.assert_close(*found)


def test_few_points_are_widened_late_and_many_are_not() -> None:
    network = PretrainNetwork(WidenedNetwork(backbone("plain", 2), 12), Pix2RepRecipe(representation_channels=12))
    view = torch.zeros(1, 2, 8, 8)
    assert network._widens_late(15, view) and not network._widens_late(16, view)
    plain = PretrainNetwork(backbone("plain", 2), Pix2RepRecipe())
    assert not plain._widens_late(1, view)

import copy

import pytest
import torch
from torch import nn

from nnunet_ssl.heads import LinearHead, NonlinearHead, Projector
from nnunet_ssl.pyramid import gather
from tests.oracles import networks as oracle

PAPER = ([16 * 2**i for i in range(6)], [(2**i,) * 3 for i in range(6)])
GRIDS = {
    "2d": ((9, 7), [2, 4, 4], [(1, 1), (2, 2), (4, 4)]),
    "3d": ((5, 9, 7), [2, 4, 4], [(1, 1, 1), (1, 2, 2), (2, 4, 4)]),
}


def pyramid(size, channels, strides):
    generator = torch.Generator().manual_seed(0)
    grids = [[-(-n // s) for n, s in zip(size, stride, strict=True)] for stride in strides]
    return [
        torch.randn(2, c, *grid, generator=generator, dtype=torch.float64)
        for c, grid in zip(channels, grids, strict=True)
    ]


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("head", "expected"), [(LinearHead, 13_117), (NonlinearHead, 968_029)])
def test_as_many_parameters_as_published(head, expected):
    assert parameters(head(*PAPER, num_classes=13)) == expected


@pytest.mark.parametrize("name", GRIDS)
def test_linear_head_is_a_linear_classifier_on_the_voxel_vector(name):
    size, channels, strides = GRIDS[name]
    levels = pyramid(size, channels, strides)
    head = LinearHead(channels, strides, 3).double()
    weight = torch.cat([layer.weight.flatten(1) for layer in head.seg_layers], 1)
    voxels = torch.cartesian_prod(*(torch.arange(n) for n in size)).double()
    vectors = gather(levels, strides, voxels.expand(2, -1, -1))
    expected = (vectors @ weight.T + head.seg_layers[0].bias).transpose(1, 2).reshape(2, 3, *size)
    torch.testing.assert_close(head(levels), expected)


def test_nonlinear_head_equals_the_formula():
    size, channels, strides = GRIDS["3d"]
    levels = pyramid(size, channels, strides)
    head = NonlinearHead(channels, strides, 3).double()
    head(levels)  # running statistics that are not 0 and 1
    head.eval()
    state = dict(head.state_dict())
    for key in [key for key in state if "up_blocks" in key]:
        assert state[key].ndim in (1, 5)
    torch.testing.assert_close(head(levels), oracle.nonlinear_head(state, levels, [(1, 2, 2), (2, 2, 2)]))


@pytest.mark.parametrize("name", GRIDS)
def test_nonlinear_head_sees_no_neighbours(name):
    size, channels, strides = GRIDS[name]
    levels = pyramid(size, channels, strides)
    head = NonlinearHead(channels, strides, 3).double().eval()
    before = head(levels)
    levels[0][(slice(None), slice(None), *(n // 2 for n in size))] += 1
    changed = (head(levels) != before).any(0).any(0)
    assert changed.nonzero().tolist() == [[n // 2 for n in size]]


@pytest.mark.parametrize("head", [LinearHead, NonlinearHead])
@pytest.mark.parametrize("name", GRIDS)
def test_shapes_names_and_gradients(head, name):
    size, channels, strides = GRIDS[name]
    levels = pyramid(size, channels, strides)
    before = copy.deepcopy(levels)
    module = head(channels, strides, 3).double()
    logits = module(levels)
    assert logits.shape == (2, 3, *size)
    assert all(torch.equal(x, y) for x, y in zip(levels, before, strict=True)), "levels were changed in place"
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in module.named_parameters() if "bias" not in n)
    wrapper = nn.Module()
    wrapper.head = module
    assert all(key.startswith("head.seg_layers.") for key in wrapper.state_dict())


def test_linear_head_has_one_bias_at_the_finest_level():
    head = LinearHead([2, 4, 8], [(1, 1), (2, 2), (4, 4)], 5)
    assert [layer.bias is not None for layer in head.seg_layers] == [True, False, False]
    assert isinstance(head.seg_layers[0], nn.Conv2d)


@pytest.mark.parametrize("head", [LinearHead, NonlinearHead])
def test_heads_refuse_what_does_not_fit(head):
    with pytest.raises(ValueError, match="one of each a level"):
        head([2, 4], [(1, 1)], 3)
    with pytest.raises(ValueError, match="cumulative"):
        head([2, 4, 4], [(1, 1), (2, 2), (3, 2)], 3)
    with pytest.raises(ValueError, match=r"expected \[2, 4\]"):
        head([2, 4], [(1, 1), (2, 2)], 3)([torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2)])


def test_projector_of_the_paper():
    projector = Projector(10, [10, 10], 4)
    kinds = [type(layer).__name__ for layer in projector.layers]
    assert kinds == ["Linear", "AllReduceBatchNorm1d", "ReLU"] * 2 + ["Linear"]
    z = projector(torch.randn(9, 10))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(9))


def test_projector_of_the_vicreg_variant():
    projector = Projector(10, [16, 16], 12, norm="layer", l2=False)
    assert [type(layer).__name__ for layer in projector.layers] == ["Linear", "LayerNorm", "GELU"] * 2 + ["Linear"]
    x = torch.randn(9, 10)
    assert projector(x).shape == (9, 12)
    torch.testing.assert_close(projector(x), projector.layers(x))


def test_projector_normalises_in_float32_under_autocast():
    projector = Projector(10, [10], 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = projector(torch.randn(9, 10))
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(9), rtol=0, atol=1e-6)


def test_projector_refuses_an_unknown_norm():
    with pytest.raises(ValueError, match="'batch' or 'layer'"):
        Projector(4, [4], 2, norm="group")

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_ssl.networks import FPN3d, FPN3dUNet
from tests.oracles import networks as oracle


def image(*size, channels=1):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)


def test_as_many_parameters_as_published():
    network = FPN3d(1, 16, 6)
    assert sum(p.numel() for p in network.parameters()) == 47_624_448
    assert network.channels == [16, 32, 64, 128, 256, 512]
    assert network.strides == [(2**i,) * 3 for i in range(6)]


def test_names_of_the_published_weights():
    names = set(FPN3d(1, 2, 3).state_dict())
    assert {name.split(".")[0] for name in names} == {
        *("first_conv", "left_blocks", "down_blocks", "bottom_block", "up_blocks", "skip_blocks", "right_blocks")
    }
    assert {"left_blocks.0.layers.1.layers.5.weight", "down_blocks.1.1.bias", "up_blocks.0.0.weight"} <= names
    # the upward half counts from the bottom
    assert FPN3d(1, 2, 3).up_blocks[0][0].in_channels == 8


@pytest.mark.parametrize("size", [(8, 8, 8), (7, 9, 5), (1, 3, 4)])
@pytest.mark.parametrize("strides", [None, [[1, 1, 1], [1, 2, 2], [2, 2, 2]]])
def test_equals_the_formula(size, strides):
    network = FPN3d(2, 2, 3, strides).double()
    x = image(*size, channels=2)
    network(x)  # running statistics that are not 0 and 1
    network.eval()
    levels = network(x)
    expected = oracle.fpn(network.state_dict(), x, strides or [[1] * 3, [2] * 3, [2] * 3])
    for level, other, channels, stride in zip(levels, expected, network.channels, network.strides, strict=True):
        assert level.shape == (2, channels, *(-(-n // s) for n, s in zip(size, stride, strict=True)))
        torch.testing.assert_close(level, other)


def test_network_with_a_face_is_the_same_network():
    bare, network = FPN3d(1, 2, 3).double().eval(), FPN3dUNet(1, 4, base_channels=2, num_scales=3).double().eval()
    state = network.state_dict()
    names = {key: network.published_key(key) for key in state if ".seg_layers." not in key}
    assert set(names.values()) == set(bare.state_dict())
    bare.load_state_dict({name: state[key] for key, name in names.items()})
    x = image(7, 9, 5)
    for level, other in zip(network.levels(x), bare(x), strict=True):
        assert torch.equal(level, other)
    halves = {key: key.split(".")[0] for key in names}
    right = ("up_blocks", "skip_blocks", "right_blocks")
    assert all((halves[key] == "decoder") == name.startswith(right) for key, name in names.items())


def test_face_of_an_nnunet_network():
    network = FPN3dUNet(1, 4, base_channels=2, num_scales=4).double()
    x = image(9, 8, 5)
    outputs = network(x)
    assert [tuple(o.shape[2:]) for o in outputs] == [(9, 8, 5), (5, 4, 3), (3, 2, 2)]
    assert all(o.shape[1] == 4 for o in outputs)
    network.decoder.deep_supervision = False
    assert torch.equal(network(x), outputs[0])
    # coarsest first, as nnU-Net's decoders keep them
    assert [layer.in_channels for layer in network.decoder.seg_layers] == [8, 4, 2]
    assert network.encoder.strides == [[1] * 3, [2] * 3, [2] * 3, [2] * 3]
    assert network.encoder.output_channels == network.channels == [2, 4, 8, 16]


def test_a_plan_can_name_it():
    arguments = {"base_channels": 2, "num_scales": 3, "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]], "n_stages": 3}
    network = get_network_from_plans("nnunet_ssl.networks.FPN3dUNet", arguments, (), 1, 2, deep_supervision=True)
    assert network.decoder.deep_supervision
    assert [tuple(o.shape) for o in network(torch.zeros(1, 1, 4, 8, 8))] == [(1, 2, 4, 8, 8), (1, 2, 4, 4, 4)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"strides": [1, 2]}, ValueError),
        ({"strides": [2, 2, 2]}, ValueError),
        ({"strides": [[1, 1], [2, 2], [2, 2]]}, ValueError),
        ({"n_stages": 4}, ValueError),
        ({"features_per_stage": [2, 4, 4]}, ValueError),
        ({"kernel_sizes": 5}, TypeError),
    ],
)
def test_refuses_what_it_cannot_be(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        FPN3dUNet(1, 2, base_channels=2, num_scales=3, **arguments)


def test_feature_map_size_counts_what_convolutions_put_out():
    network = FPN3dUNet(1, 3, base_channels=2, num_scales=3)
    count = 0

    def add(module, inputs, output):
        nonlocal count
        count += output.numel()

    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(add)
    network(torch.zeros(1, 1, 7, 8, 9))
    assert network.compute_conv_feature_map_size((7, 8, 9)) == count

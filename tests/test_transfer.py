"""Weights into networks: every tensor accounted for, stems adapted, other architectures refused, nothing changed."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_ssl.errors import UserError
from nnunet_ssl.networks import FPN3dUNet
from nnunet_ssl.nnunet.weights import Pretrained, adapt_input_channels, transfer


def network(kind: str = "plain", channels: int = 1, classes: int = 2, width: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    if kind == "fpn":
        return FPN3dUNet(channels, classes, base_channels=width, num_scales=3)
    arguments: dict[str, Any] = {
        "n_stages": 3, "features_per_stage": [width, 2 * width, 4 * width], "conv_op": nn.Conv3d,
        "kernel_sizes": [[3] * 3] * 3, "strides": [[1] * 3, [2] * 3, [2] * 3], "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True, "norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True}, "nonlin": nn.LeakyReLU,
    }  # fmt: skip
    if kind == "plain":
        return PlainConvUNet(channels, num_classes=classes, n_conv_per_stage=[1] * 3, **arguments)
    return ResidualEncoderUNet(channels, num_classes=classes, n_blocks_per_stage=[1] * 3, **arguments)


def pretrained(of: nn.Module, **extra: torch.Tensor) -> Pretrained:
    return Pretrained({**deepcopy(of.state_dict()), **extra}, None, "0" * 64, None, path="file.pth")


@pytest.mark.parametrize("kind", ["plain", "resenc", "fpn"])
def test_everything_but_the_head(kind: str) -> None:
    source, target = network(kind, seed=1), network(kind, classes=5, seed=2)
    before = deepcopy(target.state_dict())
    report = transfer(target, pretrained(source, **{"projector.0.weight": torch.ones(3)}))
    assert report.transferred == 1.0 and not report.unused
    for name, value in target.state_dict().items():
        expected = before[name] if ".seg_layers." in name else source.state_dict()[name]
        assert torch.equal(value, expected), name
    assert {row["status"] for row in report.tensors if ".seg_layers." in row["name"]} == {"random"}
    # each tensor once, though nnU-Net's state dicts hold most of them under several names
    assert len(report.tensors) == len({id(t) for t in [*target.parameters(), *target.buffers()]})


def test_heads_of_equal_shape_stay_random_too() -> None:
    source, target = network(seed=1), network(seed=2)
    transfer(target, pretrained(source))
    name = "decoder.seg_layers.0.weight"
    assert not torch.equal(target.state_dict()[name], source.state_dict()[name])


@pytest.mark.parametrize("kind", ["plain", "resenc", "fpn"])
@pytest.mark.parametrize(("old", "new"), [(1, 3), (2, 3), (3, 2), (4, 1)])
def test_stem_of_other_channels(kind: str, old: int, new: int) -> None:
    source, target = network(kind, old, seed=1), network(kind, new, seed=2)
    report = transfer(target, pretrained(source))
    assert (report.transferred, report.count("adapted")) == (1.0, 1)
    row = next(row for row in report.tensors if row["status"] == "adapted")
    assert row["reason"] == f"{old} -> {new} input channels"
    kernel, found = source.state_dict()[row["name"]], target.state_dict()[row["name"]]
    torch.testing.assert_close(found.sum(1), kernel.sum(1))


def test_a_repeated_image_gives_the_same_answer() -> None:
    kernel, image = torch.randn(4, 2, 3, 3, 3), torch.randn(1, 2, 6, 6, 6)
    once = torch.nn.functional.conv3d(image, kernel)
    repeated = image[:, torch.arange(5) % 2]
    torch.testing.assert_close(torch.nn.functional.conv3d(repeated, adapt_input_channels(kernel, 5)), once)


def test_another_architecture_is_refused_and_nothing_changes() -> None:
    for target in (network(width=6, seed=2), network("resenc", seed=2), network("fpn", seed=2)):
        before = deepcopy(target.state_dict())
        with pytest.raises(UserError, match=r"Only \d+\.\d % .* at least 90 %.*another architecture"):
            transfer(target, pretrained(network(seed=1)))
        assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_the_threshold_counts_backbone_parameters() -> None:
    source, target = network(seed=1), network(seed=2)
    weights = pretrained(source)
    weights.weights = {k: v for k, v in weights.weights.items() if k.startswith("encoder.")}
    backbone = {id(p): p.numel() for n, p in target.named_parameters() if ".seg_layers." not in n}
    encoder = sum(p.numel() for p in target.encoder.parameters())
    share = encoder / sum(backbone.values())
    report = transfer(target, weights, threshold=share - 1e-6)
    assert report.transferred == pytest.approx(share)
    with pytest.raises(UserError):
        transfer(network(seed=3), weights, threshold=share + 1e-6)


def test_stem_adaptation_can_be_switched_off() -> None:
    report = transfer(network(channels=2), pretrained(network(channels=1)), threshold=0.0, adapt_stem=False)
    assert report.count("adapted") == 0 and report.transferred < 1


def test_report_file(tmp_path: Path) -> None:
    report = transfer(network(seed=2), pretrained(network(seed=1), **{"encoder.other": torch.ones(1)}))
    report.write(tmp_path / "transfer_report.json")
    content = json.loads((tmp_path / "transfer_report.json").read_text())
    assert content["percent"] == 100.0 and content["unused"] == ["encoder.other"] and content["sha256"] == "0" * 64
    assert {row["status"] for row in content["tensors"]} == {"loaded", "random"}
    assert "100.0 %" in report.summary() and "file.pth" in report.summary()

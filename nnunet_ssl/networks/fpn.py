"""vox2vec's 3D feature pyramid network, bare (FPN3d) and with the face of an nnU-Net network (FPN3dUNet)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, cast

from torch import Tensor, nn

from nnunet_ssl.networks.blocks import ResidualStack
from nnunet_ssl.pyramid import upsample_nearest

Strides = list[list[int]]


def _stage_strides(strides: Sequence[int | Sequence[int]] | None, num_scales: int) -> Strides:
    """One stride a stage and axis, from the stage before; the paper's: 1, then 2 everywhere."""
    if strides is None:
        strides = [1] + [2] * (num_scales - 1)
    if len(strides) != num_scales:
        raise ValueError(f"{len(strides)} strides for {num_scales} scales, expected one a scale: {list(strides)}")
    stages = [[s] * 3 if isinstance(s, int) else [int(i) for i in s] for s in strides]
    if stages[0] != [1, 1, 1] or any(len(s) != 3 or min(s) < 1 for s in stages):
        raise ValueError(f"strides are {stages}, expected 3 positive integers a scale, the first 1, 1, 1")
    return stages


def _cumulative(strides: Strides) -> list[tuple[int, ...]]:
    return list(accumulate(map(tuple, strides), lambda so_far, s: tuple(i * j for i, j in zip(so_far, s, strict=True))))


def _channels(base_channels: int, num_scales: int) -> list[int]:
    return [base_channels * 2**i for i in range(num_scales)]


def _add_left(module: nn.Module, input_channels: int, channels: list[int], strides: Strides) -> None:
    """Give ``module`` the downward half. Its names are those of the published weights."""
    module.first_conv = nn.Conv3d(input_channels, channels[0], 3, padding=1)
    module.left_blocks = nn.ModuleList(ResidualStack(c) for c in channels[:-1])
    module.down_blocks = nn.ModuleList(
        nn.Sequential(nn.MaxPool3d(cast(Any, tuple(s)), ceil_mode=True), nn.Conv3d(fine, coarse, 1))
        for fine, coarse, s in zip(channels[:-1], channels[1:], strides[1:], strict=True)
    )
    module.bottom_block = ResidualStack(channels[-1])


def _add_right(module: nn.Module, channels: list[int]) -> None:
    """Give ``module`` the upward half, coarsest first. Its names are those of the published weights."""
    pairs = list(zip(channels[-2::-1], channels[:0:-1], strict=True))  # (fine, coarse)
    # a Sequential of one: the published code keeps its upsampling at index 1, which has no parameters
    module.up_blocks = nn.ModuleList(nn.Sequential(nn.Conv3d(coarse, fine, 1)) for fine, coarse in pairs)
    module.skip_blocks = nn.ModuleList(nn.Conv3d(fine, fine, 1) for fine, _ in pairs)
    module.right_blocks = nn.ModuleList(ResidualStack(fine) for fine, _ in pairs)


def _descend(module: Any, x: Tensor) -> list[Tensor]:
    """(B, C, *S) -> the left half's maps, finest first, the bottom's last."""
    x = module.first_conv(x)
    skips = []
    for left, down in zip(module.left_blocks, module.down_blocks, strict=True):
        x = left(x)
        skips.append(x)
        x = down(x)
    return [*skips, module.bottom_block(x)]


def _ascend(module: Any, skips: Sequence[Tensor], strides: Strides) -> list[Tensor]:
    """The left half's maps -> pyramid levels, both finest first with the bottom last."""
    x = skips[-1]
    levels = [x]
    rows = zip(module.up_blocks, module.skip_blocks, module.right_blocks, skips[-2::-1], strides[:0:-1], strict=True)
    for up, skip, right, fine, stride in rows:
        x = upsample_nearest(up(x), stride, fine.shape[2:]) + skip(fine)
        x = right(x)
        levels.append(x)
    return levels[::-1]


class FPN3d(nn.Module):
    """Feature pyramid network of vox2vec (Goncharov et al., MICCAI 2023, Section 2 and the published code).

    A 3^3 convolution; every stage two pre-activation residual blocks; down: max-pool, rounded up, and 1^3
    convolution; up: 1^3 convolution and nearest upsampling, cropped to the skip; skips pass a 1^3 convolution and are
    added. State-dict names are those of the published weights, whose kernels have axes (x, y, z): permute them for
    images in (z, y, x).
    """

    def __init__(
        self,
        input_channels: int,
        base_channels: int = 16,
        num_scales: int = 6,
        strides: Sequence[int | Sequence[int]] | None = None,
    ) -> None:
        """
        :param input_channels: channels of the image
        :param base_channels: channels of the finest level; they double a level
        :param num_scales: number of levels
        :param strides: per level one integer, or one an axis, from the level before; None is 1, 2, 2, ... as published
        :raises ValueError: strides that are not one a scale or do not begin with 1
        """
        super().__init__()
        self._stage_strides = _stage_strides(strides, num_scales)
        self.strides = _cumulative(self._stage_strides)
        self.channels = _channels(base_channels, num_scales)
        _add_left(self, input_channels, self.channels, self._stage_strides)
        _add_right(self, self.channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, *S) of any size -> levels (B, channels[l], ceil(S / strides[l])), finest first"""
        return _ascend(self, _descend(self, x), self._stage_strides)


class FPNEncoder(nn.Module):
    """Left half of FPN3d. ``strides`` and ``output_channels`` are per stage, as nnU-Net's encoders have them."""

    def __init__(self, input_channels: int, channels: list[int], strides: Strides) -> None:
        super().__init__()
        self.strides = strides
        self.output_channels = channels
        self.conv_op = nn.Conv3d
        _add_left(self, input_channels, channels, strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, *S) -> the maps of every stage, finest first"""
        return _descend(self, x)


class FPNDecoder(nn.Module):
    """Right half of FPN3d with a 1^3 segmentation convolution a level, coarsest first as in nnU-Net's decoders."""

    def __init__(self, channels: list[int], strides: Strides, num_classes: int, deep_supervision: bool) -> None:
        super().__init__()
        self._strides = strides
        self.deep_supervision = deep_supervision
        self.num_classes = num_classes
        _add_right(self, channels)
        # all of them, whether used or not: a network without deep supervision must load the weights of one with it
        self.seg_layers = nn.ModuleList(nn.Conv3d(c, num_classes, 1) for c in channels[-2::-1])

    def levels(self, skips: Sequence[Tensor]) -> list[Tensor]:
        """The encoder's maps -> pyramid levels, finest first, the bottom last"""
        return _ascend(self, skips, self._strides)

    def forward(self, skips: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """The encoder's maps -> logits at full resolution, or a list, finest first, under deep supervision"""
        levels = self.levels(skips)[:-1]
        if not self.deep_supervision:
            return cast(Tensor, self.seg_layers[-1](levels[0]))
        return [layer(level) for layer, level in zip(reversed(self.seg_layers), levels, strict=True)]


class FPN3dUNet(nn.Module):
    """FPN3d with the face of an nnU-Net network: ``.encoder``, ``.decoder`` with ``.seg_layers``, deep supervision.

    A plans file names this class. Without ``initialize``, weights start as torch's layers do, as in the published code.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = True,
        base_channels: int = 16,
        num_scales: int = 6,
        strides: Sequence[int | Sequence[int]] | None = None,
        **described: Any,
    ) -> None:
        """
        :param described: ``n_stages`` and ``features_per_stage`` may repeat, as plans do, what the other arguments say
        :raises ValueError: strides that do not fit, or a description that contradicts the other arguments
        :raises TypeError: any other argument
        """
        super().__init__()
        stages = _stage_strides(strides, num_scales)
        self.strides = _cumulative(stages)
        self.channels = _channels(base_channels, num_scales)
        facts = {"n_stages": num_scales, "features_per_stage": self.channels}
        for name, value in described.items():
            if name not in facts:
                raise TypeError(f"FPN3dUNet knows no argument {name!r}")
            if (list(value) if isinstance(value, Sequence) else value) != facts[name]:
                raise ValueError(f"{name} is {value}, but base_channels and num_scales make it {facts[name]}")
        self.encoder = FPNEncoder(input_channels, self.channels, stages)
        self.decoder = FPNDecoder(self.channels, stages, num_classes, deep_supervision)

    def levels(self, x: Tensor) -> list[Tensor]:
        """(B, C, *S) -> levels (B, channels[l], ceil(S / strides[l])), finest first, the bottom last"""
        return self.decoder.levels(self.encoder(x))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, *S) -> logits (B, num_classes, *S), or a list, finest first, under deep supervision"""
        return cast("Tensor | list[Tensor]", self.decoder(self.encoder(x)))

    @staticmethod
    def published_key(key: str) -> str:
        """The published name (FPN3d's) of one of this network's parameters; ``seg_layers.*`` have none there."""
        for half in ("encoder.", "decoder."):
            if key.startswith(half):
                return key[len(half) :]
        return key

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """How many values the convolutions put out for an image of this size, as nnU-Net's planner counts memory."""
        grids = [math.prod(-(-n // s) for n, s in zip(input_size, stride, strict=True)) for stride in self.strides]
        # a stage is four convolutions and its stem or down convolution
        left = sum(5 * c * grid for c, grid in zip(self.channels, grids, strict=True))
        # on the way up: four, the skip's, and the one from below, which runs before the upsampling
        right = sum(c * (5 * fine + coarse) for c, (fine, coarse) in zip(self.channels, pairwise(grids), strict=False))
        return left + right + self.decoder.num_classes * sum(grids[:-1])

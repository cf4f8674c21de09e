"""Heads on a feature pyramid: the projector of pretraining, and linear and non-linear segmentation heads.

Levels come finest first: tensors (B, C_l, *S_l) with cumulative strides, as everywhere (pyramid.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_ssl.networks.blocks import CONV, ResidualBlock
from nnunet_ssl.networks.norm import AllReduceBatchNorm1d
from nnunet_ssl.pyramid import upsample_nearest


class Projector(nn.Module):
    """Voxel vectors -> embeddings for the loss; dropped after pretraining.

    vox2vec (published code): two hidden layers as wide as the voxel vector with batch norm and ReLU, 128 outputs, L2
    normalisation. Its later VICReg variant: hidden layers of 8,192 with layer norm and GELU (norm="layer"), 8,192
    outputs, and no L2 normalisation.
    """

    def __init__(
        self, in_features: int, hidden: Sequence[int], out_features: int, norm: str = "batch", l2: bool = True
    ) -> None:
        """
        :param in_features: width of a voxel vector
        :param hidden: widths of the hidden layers; none makes the projector linear
        :param out_features: width of an embedding
        :param norm: "batch" (with ReLU) or "layer" (with GELU)
        :param l2: normalise embeddings to length 1, in float32 at least
        :raises ValueError: unknown norm
        """
        super().__init__()
        if norm not in ("batch", "layer"):
            raise ValueError(f"norm is {norm!r}, expected 'batch' or 'layer'")
        layers: list[nn.Module] = []
        width = in_features
        for features in hidden:
            layers.append(nn.Linear(width, features))
            if norm == "batch":
                layers += [AllReduceBatchNorm1d(features), nn.ReLU()]
            else:
                layers += [nn.LayerNorm(features), nn.GELU()]
            width = features
        self.layers = nn.Sequential(*layers, nn.Linear(width, out_features))
        self.l2 = l2

    def forward(self, vectors: Tensor) -> Tensor:
        """(M, in_features) -> (M, out_features). Leave out rows that are no valid points: batch norm would see them"""
        z: Tensor = self.layers(vectors)
        if self.l2:
            z = F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1)
        return z


def _ratios(strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Cumulative strides, finest first -> how much finer each level is than the next."""
    ratios = []
    for fine, coarse in pairwise(strides):
        if any(c % f for f, c in zip(fine, coarse, strict=True)):
            raise ValueError(f"strides are {list(strides)}, expected cumulative ones, each a multiple of the last")
        ratios.append([c // f for f, c in zip(fine, coarse, strict=True)])
    return ratios


class _Head(nn.Module):
    def __init__(self, channels: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
        super().__init__()
        if len(channels) != len(strides):
            raise ValueError(f"{len(channels)} channels and {len(strides)} strides, expected one of each a level")
        self.channels = [int(c) for c in channels]
        self.ndim = len(strides[0])
        self.ratios = _ratios(strides)

    def _check(self, levels: Sequence[Tensor]) -> None:
        found = [level.shape[1] for level in levels]
        if found != self.channels:
            raise ValueError(f"levels have {found} channels, expected {self.channels}")


class LinearHead(_Head):
    """A linear classifier on the voxel vector (vox2vec, linear probing): a 1^D convolution a level, summed up.

    Nearest upsampling after the convolution equals nearest reading before it, at a fraction of the cost. Parameters are
    under ``seg_layers``, finest level first, with a bias at the finest only.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[Sequence[int]], num_classes: int) -> None:
        """
        :param channels: channels of each level, finest first
        :param strides: cumulative strides of each level, D integers
        :param num_classes: number of logits
        """
        super().__init__(channels, strides)
        conv = CONV[self.ndim]
        self.seg_layers = nn.ModuleList(conv(c, num_classes, 1, bias=i == 0) for i, c in enumerate(self.channels))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (B, C_l, *S_l), finest first -> logits (B, num_classes, *S_0)"""
        self._check(levels)
        x = cast(Tensor, self.seg_layers[-1](levels[-1]))
        for layer, level, ratio in zip(self.seg_layers[-2::-1], levels[-2::-1], self.ratios[::-1], strict=True):
            x = upsample_nearest(x, ratio, level.shape[2:]) + layer(level)
        return x


class _TopDown(nn.Module):
    """The parameters of NonlinearHead, coarsest first."""

    def __init__(self, channels: list[int], num_classes: int, ndim: int) -> None:
        super().__init__()
        conv = CONV[ndim]
        pairs = list(zip(channels[-2::-1], channels[:0:-1], strict=True))  # (fine, coarse)
        self.bottom_block = ResidualBlock(channels[-1], 1, ndim)
        self.up_blocks = nn.ModuleList(conv(coarse, fine, 1) for fine, coarse in pairs)
        self.skip_blocks = nn.ModuleList(conv(fine, fine, 1) for fine, _ in pairs)
        self.right_blocks = nn.ModuleList(ResidualBlock(fine, 1, ndim) for fine, _ in pairs)
        self.final_block = conv(channels[0], num_classes, 1)


class NonlinearHead(_Head):
    """vox2vec's non-linear probe: the top-down half of its network with 1^D convolutions, which see no neighbours.

    One residual block a level, the coarsest included; skips pass a 1^D convolution and are added. Parameters and
    buffers are under ``seg_layers``.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[Sequence[int]], num_classes: int) -> None:
        """
        :param channels: channels of each level, finest first
        :param strides: cumulative strides of each level, D integers
        :param num_classes: number of logits
        """
        super().__init__(channels, strides)
        self.seg_layers = _TopDown(self.channels, num_classes, self.ndim)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (B, C_l, *S_l), finest first -> logits (B, num_classes, *S_0)"""
        self._check(levels)
        parts = self.seg_layers
        x: Tensor = parts.bottom_block(levels[-1])
        blocks = zip(parts.up_blocks, parts.skip_blocks, parts.right_blocks, strict=True)
        for (up, skip, right), level, ratio in zip(blocks, levels[-2::-1], self.ratios[::-1], strict=True):
            x = right(upsample_nearest(up(x), ratio, level.shape[2:]) + skip(level))
        return cast(Tensor, parts.final_block(x))

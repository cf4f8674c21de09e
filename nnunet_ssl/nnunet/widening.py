"""A U-Net whose finest level is widened: one that ends in 16 or 32 channels carries little in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ssl.networks.blocks import CONV
from nnunet_ssl.nnunet.pyramid_of import pyramid_channels, pyramid_levels, pyramid_strides

NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class Widening(nn.Sequential):
    """Convolution of size 1, instance norm and nonlinearity, for whole maps or voxel by voxel."""

    def __init__(self, channels: int, width: int, dimensions: int) -> None:
        super().__init__(
            CONV[dimensions](channels, width, 1), NORM[dimensions](width, affine=True), nn.LeakyReLU(inplace=True)
        )

    def by_voxel(self, level: Tensor) -> Callable[[Tensor], Tensor]:
        """What it makes of single voxels of a level (B, C, *S): a function (B, P, C) -> (B, P, W).

        The same as reading the widened map, which is never made: the norm needs the mean and variance of every
        channel W x + b of it, and these are W mean(x) + b and the diagonal of W cov(x) W'.
        """
        conv, norm = cast(nn.Conv3d, self[0]), cast(nn.InstanceNorm3d, self[1])
        weight, bias = conv.weight.flatten(1), cast(Tensor, conv.bias)  # (W, C), (W)
        with torch.autocast(level.device.type, enabled=False):
            voxels = level.flatten(2).to(weight.dtype)  # (B, C, V); variances in half precision are noise
            mean = voxels.mean(2)  # (B, C)
            centred = voxels - mean[..., None]
            covariance = centred @ centred.transpose(1, 2) / voxels.shape[2]  # (B, C, C)
            variance = ((weight @ covariance) * weight).sum(-1)  # (B, W)
            scale = norm.weight * torch.rsqrt(variance + norm.eps)  # (B, W)
            wide_mean = functional.linear(mean, weight, bias)

        def change(vectors: Tensor) -> Tensor:
            wide = functional.linear(vectors, weight, bias).to(scale.dtype)
            return cast(Tensor, self[2]((wide - wide_mean[:, None]) * scale[:, None] + norm.bias))

        return change


class WidenedNetwork(nn.Module):
    """A stock network whose finest level passes a 1^D convolution, a norm and a nonlinearity (those of nnU-Net's
    blocks; a convolution alone would add channels but no rank).

    In Pix2Rep (Seince et al., MIDL 2024) the network ends in 1,024 such maps. ``encoder`` and ``decoder`` are the stock
    network's, ``representation`` lies beside them: it is kept downstream, as the finest level of the pyramid. The stock
    segmentation layers do not see it.
    """

    def __init__(self, backbone: nn.Module, width: int) -> None:
        """
        :param backbone: a network whose pyramid can be read
        :param width: channels of the widened level
        """
        super().__init__()
        own = pyramid_channels(backbone)
        self.strides = pyramid_strides(backbone)
        self.channels = [width, *own[1:]]
        self.encoder = backbone.encoder
        self.decoder = backbone.decoder
        dimensions = len(self.strides[0])
        self.representation = Widening(own[0], width, dimensions)
        # In a tuple, so that it is no second owner of the modules: the keys of the state dict stay the stock ones.
        self._backbone = (backbone,)

    def stock_levels(self, x: Tensor) -> list[Tensor]:
        """(B, C, *S) -> the stock network's levels, finest first, the bottleneck last."""
        return pyramid_levels(self._backbone[0], x)

    def levels(self, x: Tensor) -> list[Tensor]:
        """The same, the first one widened."""
        finest, *coarser = self.stock_levels(x)
        return [cast(Tensor, self.representation(finest)), *coarser]

    def forward(self, x: Tensor) -> Any:
        """(B, C, *S) -> what the stock network answers."""
        return self.decoder(self.encoder(x))

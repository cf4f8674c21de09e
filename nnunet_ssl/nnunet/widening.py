"""A U-Net whose finest level is widened: one that ends in 16 or 32 channels carries little in it."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from nnunet_ssl.networks.blocks import CONV
from nnunet_ssl.nnunet.pyramid_of import pyramid_channels, pyramid_levels, pyramid_strides

NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


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
        self.representation = nn.Sequential(
            CONV[dimensions](own[0], width, 1), NORM[dimensions](width, affine=True), nn.LeakyReLU(inplace=True)
        )
        # In a tuple, so that it is no second owner of the modules: the keys of the state dict stay the stock ones.
        self._backbone = (backbone,)

    def levels(self, x: Tensor) -> list[Tensor]:
        """(B, C, *S) -> levels finest first, the bottleneck last; the first one widened."""
        finest, *coarser = pyramid_levels(self._backbone[0], x)
        return [cast(Tensor, self.representation(finest)), *coarser]

    def forward(self, x: Tensor) -> Any:
        """(B, C, *S) -> what the stock network answers."""
        return self.decoder(self.encoder(x))

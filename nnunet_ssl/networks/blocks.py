"""Building blocks that the networks and the heads share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class ResidualBlock(nn.Module):
    """Pre-activation residual block: x + conv(relu(bn(conv(relu(bn(x)))))), channels and size unchanged.

    The names of its parameters are those of the published vox2vec weights.
    """

    def __init__(self, channels: int, kernel_size: int, ndim: int = 3) -> None:
        super().__init__()
        conv, batch_norm = CONV[ndim], BATCH_NORM[ndim]
        # the ReLUs work in place on what batch norm made, never on the input, which the identity path needs
        self.layers = nn.Sequential(
            batch_norm(channels),
            nn.ReLU(inplace=True),
            conv(channels, channels, kernel_size, padding=kernel_size // 2),
            batch_norm(channels),
            nn.ReLU(inplace=True),
            conv(channels, channels, kernel_size, padding=kernel_size // 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)"""
        return torch.add(x, self.layers(x))


class ResidualStack(nn.Module):
    """``depth`` residual blocks in a row."""

    def __init__(self, channels: int, depth: int = 2, kernel_size: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ResidualBlock(channels, kernel_size) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)"""
        for layer in self.layers:
            x = layer(x)
        return x

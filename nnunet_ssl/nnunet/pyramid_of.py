"""The pyramid of a network: its levels, their strides and channels, whoever made it.

Letters: B images, C channels, *S spatial size, D spatial dimensions, L levels. Levels run finest first; the bottleneck
is the last.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor, nn

from nnunet_ssl.errors import UserError


def pyramid_levels(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Feature maps of every decoder level, finest first, and the bottleneck: list of (B, C_l, *S_l) for x (B, C, *S).

    A network with its own ``levels`` (FPN3dUNet, PretrainNetwork) is asked; for a U-Net of nnU-Net the decoder's loop
    is run here, which needs no hooks (those are silently dropped by compiled graphs).
    """
    if callable(getattr(network, "levels", None)):
        return list(network.levels(x))
    require_pyramid(network)
    skips = network.encoder(x)
    level = skips[-1]
    levels = [level]
    for s, (upsample, stage) in enumerate(zip(network.decoder.transpconvs, network.decoder.stages, strict=True)):
        level = stage(torch.cat((upsample(level), skips[-(s + 2)]), 1))
        levels.append(level)
    return levels[::-1]


def pyramid_strides(network: nn.Module) -> list[tuple[int, ...]]:
    """Cumulative strides of the levels, finest first: one tuple of D ints a level."""
    if isinstance(getattr(network, "strides", None), list | tuple):
        return [tuple(int(s) for s in stride) for stride in network.strides]
    require_pyramid(network)
    dimensions = 3 if network.encoder.conv_op is nn.Conv3d else 2
    steps = [(s,) * dimensions if isinstance(s, int) else tuple(s) for s in network.encoder.strides]
    return list(accumulate(steps, lambda a, b: tuple(int(i) * int(j) for i, j in zip(a, b, strict=True))))


def pyramid_channels(network: nn.Module) -> list[int]:
    """Channels of the levels, finest first."""
    if isinstance(getattr(network, "channels", None), list | tuple):
        return [int(c) for c in network.channels]
    require_pyramid(network)
    return [int(c) for c in network.encoder.output_channels]


def require_pyramid(network: nn.Module) -> None:
    """Raise UserError for a network whose levels cannot be read."""
    decoder, encoder = getattr(network, "decoder", None), getattr(network, "encoder", None)
    parts = [getattr(encoder, "strides", None), getattr(encoder, "output_channels", None)]
    parts += [getattr(decoder, "stages", None), getattr(decoder, "transpconvs", None)]
    if any(part is None for part in parts):
        raise UserError(
            f"The plan's network {type(network).__name__} has no pyramid that can be read; expected PlainConvUNet, "
            "ResidualEncoderUNet, or a class with levels(x), strides and channels such as FPN3dUNet."
        )


def has_batch_norm(network: nn.Module) -> bool:
    """Whether batch statistics pass between the samples of a batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())

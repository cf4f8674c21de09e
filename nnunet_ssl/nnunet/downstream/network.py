"""A stock network whose pyramid carries another head, or whose encoder stays frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssl.heads import LinearHead, NonlinearHead
from nnunet_ssl.nnunet.downstream.protocols import Protocol
from nnunet_ssl.nnunet.downstream.settings import Settings
from nnunet_ssl.nnunet.network import build_backbone
from nnunet_ssl.nnunet.pyramid_of import pyramid_channels, pyramid_levels, pyramid_strides
from nnunet_ssl.nnunet.widening import WidenedNetwork

HEADS = {"linear": LinearHead, "nonlinear": NonlinearHead}


class DownstreamNetwork(nn.Module):
    """``encoder`` and ``decoder`` of a stock network, with its names; ``head`` on the pyramid, if any, beside them.

    All that belongs to the head lies under ``head.seg_layers.``, which nnU-Net's loader of pretrained weights leaves
    alone; it insists on every other name. Frozen modules get no gradient and stay in eval mode whatever train() is
    called with, so that batch statistics and dropout are those of the pretraining.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module | None = None, frozen: Sequence[str] = (),
                 background: bool = False, standardise: bool = False) -> None:  # fmt: skip
        """
        :param backbone: PlainConvUNet, ResidualEncoderUNet or FPN3dUNet, or one of these widened
        :param head: LinearHead or NonlinearHead on its pyramid; None keeps its segmentation layers
        :param frozen: ``encoder``, ``decoder`` (and with it what widens its finest level)
        :param background: put a channel of zeros in front of the head's logits, so that argmax is sigmoid >= 0.5
        :param standardise: the head sees (level - mean) / std of each channel, buffers that begin as 0 and 1
        """
        super().__init__()
        self.encoder = backbone.encoder
        self.decoder = backbone.decoder
        self.head = head
        self.frozen = tuple(frozen)
        if isinstance(backbone, WidenedNetwork):
            self.representation = backbone.representation
            self.frozen += ("representation",) if "decoder" in frozen else ()
        self.background = background
        self.standardise = standardise
        # In a tuple, so that it is no second owner of the modules.
        self._backbone = (backbone,)
        if head is not None:
            self.decoder.seg_layers.requires_grad_(False)  # not used: DDP would wait for their gradients
        if head is not None and standardise:
            for level, channels in enumerate(pyramid_channels(backbone)):
                head.seg_layers.register_buffer(f"mean_{level}", torch.zeros(channels))
                head.seg_layers.register_buffer(f"std_{level}", torch.ones(channels))
        for name in self.frozen:
            getattr(self, name).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> DownstreamNetwork:
        super().train(mode)
        for name in self.frozen:
            getattr(self, name).eval()
        return self

    def levels(self, x: Tensor) -> list[Tensor]:
        """(B, C, *S) -> the backbone's levels, finest first"""
        with torch.set_grad_enabled(torch.is_grad_enabled() and "decoder" not in self.frozen):
            return pyramid_levels(self._backbone[0], x)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, *S) -> logits (B, K, *S); the stock head gives a list under deep supervision"""
        if self.head is None:
            return self.decoder(self.encoder(x))
        levels = self.levels(x)
        if self.standardise:
            levels = [self._standardised(level, number) for number, level in enumerate(levels)]
        logits: Tensor = self.head(levels)  # (B, K, *S)
        return torch.cat([torch.zeros_like(logits[:, :1]), logits], 1) if self.background else logits

    def _standardised(self, level: Tensor, number: int) -> Tensor:
        mean, std = self.moments(number)
        shape = (1, -1, *[1] * (level.ndim - 2))
        return (level - mean.view(shape)) / std.view(shape)

    def moments(self, number: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C_l,) of a level's channels: the buffers themselves."""
        layers: Any = self.head.seg_layers
        return getattr(layers, f"mean_{number}"), getattr(layers, f"std_{number}")


def build_network(settings: Settings, protocol: Protocol, configuration_manager: Any, num_input_channels: int,
                  num_output_channels: int, regions: bool, enable_deep_supervision: bool) -> nn.Module:  # fmt: skip
    """The network of a downstream training, from the plan alone: what nnU-Net's predictor rebuilds.

    The stock network itself where nothing is frozen and its own segmentation layers are the head. Under the paper's
    protocol (sigmoid a class) without regions the background channel is a constant 0 and has no parameters.
    """
    stock = settings.head == "stock"
    backbone = build_backbone(configuration_manager, num_input_channels, num_output_channels,
                              enable_deep_supervision and stock, stock)  # fmt: skip
    if stock:
        return DownstreamNetwork(backbone, None, protocol.frozen) if protocol.frozen else backbone
    background = settings.sigmoid and not regions
    classes = num_output_channels - background
    head = HEADS[settings.head](pyramid_channels(backbone), pyramid_strides(backbone), classes)
    return DownstreamNetwork(backbone, head, protocol.frozen, background, settings.standardise)


def bare(network: nn.Module) -> nn.Module:
    """The network inside DDP and torch.compile."""
    for attribute in ("module", "_orig_mod"):
        inner = getattr(network, attribute, None)
        network = inner if isinstance(inner, nn.Module) else network
    return network


def head_and_backbone(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that learn: (those of the head, those of the backbone)."""
    head, backbone = [], []
    for name, parameter in bare(network).named_parameters():
        if parameter.requires_grad:
            (head if ".seg_layers." in name else backbone).append(parameter)
    return head, backbone

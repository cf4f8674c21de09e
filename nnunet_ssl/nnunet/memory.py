"""How much memory a pretraining step takes, counted without running it: the forward pass on the meta device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssl.errors import UserError

GIB = 2.0**30
RESERVE_GIB = 0.6  # CUDA context, library workspaces
FRAGMENTATION = 1.15  # what an allocator wastes
OPTIMISER_BYTES = 16  # a parameter: itself, its gradient, two moments of Adam, fp32 each


@dataclass(frozen=True)
class NetworkCost:
    """Of one network at one patch size.

    ``saved``: values that a patch keeps for the backward pass; ``largest``: the biggest map of these; ``channels``:
    of the pyramid's levels, finest first.
    """

    parameters: int
    saved: int
    largest: int
    channels: tuple[int, ...]

    @property
    def scale(self) -> float:
        """Bytes of activations of one patch in fp32."""
        return 4.0 * (self.saved + 2 * self.largest)


def build(architecture: Mapping[str, Any], channels: int, classes: int = 2) -> nn.Module:
    """The plan's network on the meta device: no memory, no time. UserError if the plan does not describe one."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    try:
        with torch.device("meta"):
            return get_network_from_plans(
                architecture["network_class_name"],
                architecture["arch_kwargs"],
                architecture["_kw_requires_import"],
                channels,
                classes,
                allow_init=False,
                deep_supervision=False,
            )
    except Exception as error:
        name = architecture.get("network_class_name")
        raise UserError(f"The plan's network {name} cannot be built: {str(error).strip()[:300]}") from error


def measure(
    architecture: Mapping[str, Any], channels: int, patch: Sequence[int], widened: int | None = None
) -> NetworkCost:
    """Count parameters and saved activations of a training forward pass on one patch.

    widened: channels that the finest level is given (``ssl.representation_channels``).
    """
    from nnunet_ssl.nnunet.pyramid_of import pyramid_channels, pyramid_levels
    from nnunet_ssl.nnunet.widening import WidenedNetwork

    network = build(architecture, channels).train()
    if widened is not None:
        with torch.device("meta"):
            network = WidenedNetwork(network, widened)
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}  # by storage, held so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in own and tensor.is_floating_point():
            kept[key] = tensor
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            levels = pyramid_levels(network, torch.empty(2, channels, *patch, device="meta"))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The plan's network does not take patches of {list(patch)}: {str(error).strip()[:200]}. Patch sizes must "
            f"be multiples of {total_stride(architecture)}."
        ) from error
    sizes = [tensor.untyped_storage().nbytes() // tensor.element_size() // 2 for tensor in kept.values()]
    del levels
    parameters = sum(p.numel() for name, p in network.named_parameters() if ".seg_layers." not in name)
    return NetworkCost(parameters, sum(sizes), max(sizes, default=0), tuple(pyramid_channels(network)))


def total_stride(architecture: Mapping[str, Any]) -> list[int]:
    """Product of the plan's strides, one number an axis."""
    strides = architecture["arch_kwargs"]["strides"]
    dimensions = next((len(s) for s in strides if not isinstance(s, int)), 3)
    total = [1] * dimensions
    for stride in strides:
        for axis, step in enumerate([stride] * dimensions if isinstance(stride, int) else stride):
            total[axis] *= int(step)
    return total


def projector_parameters(cost: NetworkCost, recipe: Any) -> int:
    """Parameters of the level widths and the projector that a recipe asks for."""
    width, hidden = _widths(cost, recipe)
    linear = sum(a * b + b for a, b in pairwise([width, *hidden, recipe.embedding_width]))
    read = cost.channels[: recipe.read_levels(len(cost.channels))]
    levels = 0 if recipe.level_width == "native" else (sum(read) + len(read)) * recipe.level_width
    return linear + 2 * sum(hidden) + levels


def _widths(cost: NetworkCost, recipe: Any) -> tuple[int, list[int]]:
    channels = cost.channels[: recipe.read_levels(len(cost.channels))]
    width = sum(channels) if recipe.level_width == "native" else len(channels) * int(recipe.level_width)
    return width, list(recipe.hidden_widths(width))


def step_gib(cost: NetworkCost, pairs: int, patch: Sequence[int], recipe: Any, half: bool) -> float:
    """Expected memory in GiB of a training step on ``pairs`` pairs of views of ``patch`` voxels.

    ``half``: activations of the backbone in 16 bits (AMP on a GPU), else fp32 (CPU). InfoNCE needs O(N d)
    (``nnunet_ssl.losses.info_nce``), the others O(N d + d^2).
    """
    width, hidden = _widths(cost, recipe)
    vectors = 2 * pairs * recipe.points(patch)
    heads = 4.0 * vectors * (2 * width + 3 * sum(hidden) + 6 * recipe.embedding_width)
    if recipe.loss != "info_nce":
        heads += 4.0 * 6 * recipe.embedding_width**2  # covariances of both views, their squares and gradients
    activations = 2 * pairs * cost.scale * (0.5 if half else 1.0)
    weights = float(OPTIMISER_BYTES * (cost.parameters + projector_parameters(cost, recipe)))
    return (weights + FRAGMENTATION * (activations + heads)) / GIB + (RESERVE_GIB if half else 0.3)


def supervised_gib(cost: NetworkCost, batch: int, classes: int, voxels: int) -> float:
    """Expected memory in GiB of a segmentation training step with AMP on ``batch`` patches of ``voxels`` voxels."""
    logits = 4.0 * batch * classes * voxels * 6  # fp32 logits, softmax, their gradients, targets
    activations = 0.5 * batch * cost.scale
    return (OPTIMISER_BYTES * cost.parameters + FRAGMENTATION * (activations + logits)) / GIB + RESERVE_GIB

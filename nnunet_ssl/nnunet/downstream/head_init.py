"""Starting a head from the training cases' frozen features: their moments, or a linear fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from nnunet_ssl.errors import UserError
from nnunet_ssl.heads import LinearHead
from nnunet_ssl.nnunet.downstream.network import DownstreamNetwork, bare
from nnunet_ssl.nnunet.linear_fit import VoxelSample, collect_voxels, fit_linear, to_head
from nnunet_ssl.nnunet.pyramid_of import pyramid_channels, pyramid_levels, pyramid_strides

MAX_CASES = 32  # seen by a fit; a seeded choice where there are more
PASSES_FIT, PASSES_MOMENTS = 256, 64  # forward passes over all cases, shared evenly
LEAST_STD = 1e-3  # of the typical channel: one that hardly varies is not blown up


def backbone_of(network: nn.Module) -> nn.Module:
    """The stock network inside a downstream network, or the network itself."""
    return network._backbone[0] if isinstance(network, DownstreamNetwork) else network


def sample_features(network: nn.Module, cases: Sequence[tuple[Any, Any]], patch_size: Sequence[int], label_manager: Any,
                    device: torch.device, seed: int, **limits: int) -> VoxelSample:  # fmt: skip
    """Labelled voxels of the cases with the backbone's vectors in eval mode; the network's modes are put back.

    cases: pairs of preprocessed image (C, z, y, x) and segmentation (1, z, y, x). limits: see `collect_voxels`.
    """
    backbone = backbone_of(network)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        return collect_voxels(lambda x: pyramid_levels(backbone, x), pyramid_strides(backbone), cases, patch_size,
                              max(label_manager.all_labels) + 1, np.random.default_rng(seed),
                              ignore_label=label_manager.ignore_label, device=device, **limits)  # fmt: skip
    finally:
        for module, mode in modes:
            module.training = mode


def fit_targets(labels: Tensor, label_manager: Any, sigmoid: bool) -> Tensor:
    """Labels (n,) -> what the head's outputs mean: labels (n,), or (n, K) of 0 and 1 where each is a sigmoid."""
    if label_manager.has_regions:
        regions = label_manager.foreground_regions
        groups = [region if isinstance(region, tuple | list) else (region,) for region in regions]
    elif sigmoid:
        groups = [(label,) for label in label_manager.foreground_labels]
    else:
        return labels
    return torch.stack([torch.isin(labels, torch.tensor([int(i) for i in group])) for group in groups], 1).long()


@torch.no_grad()
def set_moments(network: DownstreamNetwork, features: Tensor) -> None:
    """Give a standardising network the mean and deviation of every channel of features (n, sum C_l)."""
    channels = pyramid_channels(backbone_of(network))
    means = features.mean(0).split(channels)
    stds = features.std(0, unbiased=False)
    stds = stds.clamp_min(max(LEAST_STD * float(stds.median()), 1e-6)).split(channels)
    for number, (new_mean, new_std) in enumerate(zip(means, stds, strict=True)):
        mean, std = network.moments(number)
        mean.copy_(new_mean)
        std.copy_(new_std)


@torch.no_grad()
def fold_moments(network: DownstreamNetwork) -> None:
    """Move a linear head's standardisation into its convolutions: the same logits, moments of 0 and 1."""
    layers: Any = network.head.seg_layers
    for number, layer in enumerate(layers):
        mean, std = network.moments(number)
        layer.weight.div_(std.view(1, -1, *[1] * (layer.weight.ndim - 2)))
        layers[0].bias.sub_(layer.weight.flatten(1) @ mean)  # coarse levels reach every voxel once
        mean.zero_()
        std.fill_(1)


def start_head(network: nn.Module, sample: VoxelSample, targets: Tensor) -> str:
    """Set the head to a linear fit of the sample; what was fitted, in words.

    A linear head gets one fit on whole voxel vectors, in standardised channels where it standardises. nnU-Net's own
    segmentation layers see one level each and get one fit each (those of deep supervision included).
    """
    classes = targets.shape[1] if targets.ndim == 2 else int(_num_outputs(network))
    device = next(network.parameters()).device
    features = sample.features.to(device)
    targets, weights = targets.to(device), sample.weights.to(device)
    if isinstance(network, DownstreamNetwork) and isinstance(network.head, LinearHead):
        if network.standardise:
            moments = [network.moments(number) for number in range(len(network.head.seg_layers))]
            features = (features - torch.cat([m for m, _ in moments])) / torch.cat([s for _, s in moments])
        to_head(*fit_linear(features, targets, classes, weights), network.head)
        return f"linear head: one fit to {len(features):,} voxels"
    channels = pyramid_channels(backbone_of(network))
    layers: Any = network.decoder.seg_layers
    parts = features.split(channels, 1)
    for layer, part in zip(reversed(layers), parts, strict=False):  # layers coarsest first; the bottleneck has none
        weight, bias = fit_linear(part.contiguous(), targets, classes, weights)
        with torch.no_grad():
            layer.weight.copy_(weight.reshape(layer.weight.shape))
            layer.bias.copy_(bias)
    return f"segmentation layers: {len(layers)} fits to {len(features):,} voxels"


def prepare_head(trainer: Any) -> None:
    """Before the first step: moments for a standardising head, a linear fit where ``head_init`` is ``probe``.

    A fit that nobody asked for and that cannot be made (no voxel of a class in the cases) leaves the head random.

    Works on the training cases; with several processes the first one fits and the others get its head.
    """
    network = bare(trainer.network)
    standardise = isinstance(network, DownstreamNetwork) and network.standardise
    fit = trainer.settings.head_init == "probe"
    if not standardise and not fit:
        return
    if trainer.local_rank == 0:
        try:
            _start(trainer, network, standardise, fit)
        except UserError as error:
            if standardise or trainer.recipe.head_init is not None:
                raise
            trainer.print_to_log_file(f"The head starts at random: {error}")
    if trainer.is_ddp:
        for name, tensor in network.state_dict().items():
            if ".seg_layers." in name:
                dist.broadcast(tensor, 0)


def _start(trainer: Any, network: Any, standardise: bool, fit: bool) -> None:
    seed = trainer.recipe.seed or 0
    keys = np.random.default_rng(seed).permutation(sorted(trainer.do_split()[0]))[:MAX_CASES].tolist()
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, keys)
    what = "Fitting the head (ssl.head_init = random leaves that out)" if fit else "Measuring the features' moments"
    trainer.print_to_log_file(f"{what}: frozen features of {counted(keys)} ...")
    passes = (PASSES_FIT if fit else PASSES_MOMENTS) // len(keys)
    sample = sample_features(network, [dataset.load_case(key)[:2] for key in dataset.identifiers],
                             trainer.configuration_manager.patch_size, trainer.label_manager, trainer.device, seed,
                             max_windows=min(64, passes))  # fmt: skip
    if standardise:
        set_moments(network, sample.features.to(trainer.device))
    if fit:
        targets = fit_targets(sample.labels, trainer.label_manager, trainer.settings.sigmoid)
        trainer.print_to_log_file("head_init=probe,", start_head(network, sample, targets))


def counted(cases: Sequence[str], most: int = 10) -> str:
    """How many cases, and the first of their names."""
    more = "" if len(cases) <= most else ", ..."
    return f"{len(cases)} training case{'s' * (len(cases) != 1)} ({', '.join(sorted(cases)[:most])}{more})"


def _num_outputs(network: nn.Module) -> int:
    if isinstance(network, DownstreamNetwork) and isinstance(network.head, LinearHead):
        return int(network.head.seg_layers[0].weight.shape[0])
    return int(network.decoder.seg_layers[-1].weight.shape[0])

"""What a pretraining needs before its first step: a plan that can be used, cases, loaders, channel units."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor, nn
from torch import distributed as dist

from nnunet_ssl.errors import UserError
from nnunet_ssl.intensity import ChannelUnits
from nnunet_ssl.nnunet.loader import TRAINING, VALIDATION, PairDataset, PairLoader, hold_back, share_of_pairs
from nnunet_ssl.nnunet.masks import CT_SCHEME, mask_maker
from nnunet_ssl.nnunet.pyramid_of import pyramid_strides
from nnunet_ssl.nnunet.recipe import parse, ssl_block, to_block
from nnunet_ssl.nnunet.settings import pretrain_trainer
from nnunet_ssl.nnunet.splits import Split, stock_split
from nnunet_ssl.objectives import objective_of


def require_folders() -> None:
    """Raise UserError where nnU-Net's environment variables are missing."""
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        if not os.environ.get(variable):
            raise UserError(f"The environment variable {variable} is not set. Set it, as for every nnU-Net training.")


def checked_recipe(plans_manager: Any, configuration: str, recipe_class: type) -> Any:
    """The Recipe of the plan's configuration. Raises UserError for a plan that cannot be pretrained."""
    known = plans_manager.available_configurations
    if configuration not in known:
        raise UserError(f'The plan has no configuration "{configuration}"; it has {", ".join(known)}.')
    manager = plans_manager.get_configuration(configuration)
    if manager.previous_stage_name is not None:
        raise UserError(
            f'Configuration "{configuration}" is the second stage of a cascade: its network takes the first stage\'s '
            f"segmentation as input, which unlabelled images do not have. Pretrain {_not_cascaded(plans_manager)}."
        )
    block = ssl_block(manager)
    wanted, trained = recipe_class().objective, block.get("objective")
    if trained not in (None, wanted):
        trainer = pretrain_trainer(trained)
        instead = f"Train it with -tr {trainer}" if trainer else "There is no trainer for it"
        raise UserError(
            f'The plan\'s ssl block is for objective "{trained}", this trainer is for "{wanted}". {instead}, or make a '
            "plan with another --preset."
        )
    if "pretrained" in block:
        raise UserError(
            "This plan was made by `nnunet_ssl adapt`, for the trainers of a labelled dataset (SSLFineTuneTrainer and "
            "its like). To pretrain, make one with `nnunet_ssl plan`."
        )
    recipe = parse(block, recipe_class)
    dimensions = len(manager.patch_size)
    for name in ("flip_axes", "mirror_axes"):
        axes = getattr(recipe, name) or []
        if any(axis >= dimensions for axis in axes):
            raise UserError(f"ssl.{name} is {axes}, expected axes 0 to {dimensions - 1} of a {dimensions}D patch.")
    try:
        objective_of(recipe).box_size(manager.patch_size, manager.spacing, recipe)
        channel_units(plans_manager, manager)
    except ValueError as error:
        raise UserError(f"The plan cannot be used for pretraining: {error}") from None
    return recipe


def _not_cascaded(plans_manager: Any) -> str:
    names = plans_manager.available_configurations
    return " or ".join(n for n in names if plans_manager.get_configuration(n).previous_stage_name is None)


def check_patch(patch: Sequence[int], network: nn.Module) -> None:
    """Raise UserError for a patch that the U-Net cannot halve as often as it has to (an FPN takes any)."""
    stride = pyramid_strides(network)[-1]
    backbone = getattr(network, "_backbone", (network,))[0]
    if callable(getattr(backbone, "levels", None)):
        return
    coarsest = [p // s for p, s in zip(patch, stride, strict=True)]
    if any(p % s for p, s in zip(patch, stride, strict=True)) or np.prod(coarsest) < 2:
        raise UserError(
            f"patch_size {list(patch)} does not fit the network's total stride {list(stride)}: every side must be a "
            "multiple of it, and the coarsest level must have more than one voxel."
        )


def require_preprocessed(trainer: Any) -> None:
    """Raise UserError where the preprocessed volumes are missing or of a kind that cannot be read partially."""
    folder = trainer.preprocessed_dataset_folder
    if folder is None or not Path(folder).is_dir() or not nnUNetDatasetBlosc2.get_identifiers(folder):
        plans, dataset = trainer.plans_manager.plans_name, trainer.plans_manager.dataset_name
        raise UserError(
            f"There are no preprocessed volumes (.b2nd) in {folder}. Run `nnUNetv2_preprocess -d {dataset} -plans_name "
            f"{plans} -c {trainer.configuration_name}`, or `nnunet_ssl plan ... --preprocess`."
        )


def split(trainer: Any, by_stock: Callable[[], Split]) -> Split:
    """(training, held-back) cases: max(1, 5 %) held back for fold all, nnU-Net's own split for a number."""
    if trainer.fold == "all":
        return hold_back(nnUNetDatasetBlosc2.get_identifiers(trainer.preprocessed_dataset_folder))
    training, validation = stock_split(trainer.fold, by_stock)
    return sorted(training), sorted(validation)


def loaders(trainer: Any, start: int, only_validation: bool = False) -> tuple[PairLoader | None, PairLoader | None]:
    """Training pairs from global iteration ``start`` on, and the held-back pairs, the same in every epoch."""
    recipe, manager = trainer.recipe, trainer.configuration_manager
    training, validation = trainer.do_split()
    ranks = (dist.get_rank(), dist.get_world_size()) if trainer.is_ddp else (0, 1)

    def dataset(cases: list[str], stream: int) -> PairDataset:
        return PairDataset(
            folder=trainer.preprocessed_dataset_folder, cases=cases, patch=tuple(manager.patch_size),
            spacing=tuple(manager.spacing), recipe=recipe, pairs=share_of_pairs(trainer.batch_size, *ranks),
            stream=stream, mask_maker=mask_maker(trainer.plans_manager, manager, trainer.dataset_json),
        )  # fmt: skip

    workers, pin = get_allowed_n_proc_DA(), trainer.device.type == "cuda"
    train = None if only_validation else PairLoader(dataset(training, TRAINING), start, None, workers, pin)
    if recipe.num_val_iterations_per_epoch == 0:
        return train, None
    few = 0 if only_validation else min(workers, max(1, workers // 2))
    return train, PairLoader(dataset(validation, VALIDATION), 0, recipe.num_val_iterations_per_epoch, few, pin)


def channel_units(plans_manager: Any, configuration_manager: Any) -> list[ChannelUnits]:
    """How to read the channels of preprocessed data: HU with its mean and std where CTNormalization was used."""
    properties = plans_manager.foreground_intensity_properties_per_channel
    units = []
    for channel, scheme in enumerate(configuration_manager.normalization_schemes):
        row = properties.get(str(channel), {})
        is_ct = scheme == CT_SCHEME
        units.append(ChannelUnits("hu", float(row["mean"]), float(row["std"])) if is_ct else ChannelUnits("zscore"))
    return units


def enhancer(trainer: Any) -> Callable[[Tensor, Any], Tensor]:
    """(views (B, C, *S), generator) -> views with new intensities, in the plan's normalised units."""
    units = channel_units(trainer.plans_manager, trainer.configuration_manager)
    recipe = trainer.recipe
    if hu_without_ct(recipe, units):
        recipe = dataclasses.replace(recipe, intensity="auto")
    flat = len(trainer.configuration_manager.patch_size) == 2
    axial = None if flat else list(trainer.plans_manager.transpose_forward).index(0)
    augment = objective_of(recipe).augment
    return lambda views, generator: augment(views, units, recipe, generator, axial)


def hu_without_ct(recipe: Any, units: Sequence[ChannelUnits]) -> bool:
    """Whether augmentation in HU is asked for on channels that have no HU."""
    return bool(recipe.intensity == "hu" and any(unit.kind != "hu" for unit in units))


def announcement(trainer: Any) -> list[str]:
    """What is going to happen, for the log: settings and where they come from, data, intensities."""
    units = channel_units(trainer.plans_manager, trainer.configuration_manager)
    block, defaults = to_block(trainer.recipe), to_block(type(trainer.recipe)())
    changed = ", ".join(f"{name} {json.dumps(value)}" for name, value in block.items() if value != defaults[name])
    training, validation = trainer.do_split()
    lines = [
        f"Recipe: {json.dumps(block)}",
        f"Other than the defaults: {changed or 'nothing'}." if ssl_block(trainer.configuration_manager) else
        'The plan has no "ssl" block: all settings are defaults.',
        f"{len(training)} volumes to pretrain on, {trainer.batch_size} pairs a step; {len(validation)} held back for "
        "retrieval@1.",
        f"Intensities: {', '.join('HU' if unit.kind == 'hu' else 'z-score' for unit in units)} by channel.",
        f"Levels are read at each voxel: {trainer.recipe.level_reading}; channels by level, finest first: "
        f"{trainer.bare_network().read_channels}.",
        f"checkpoint_latest.pth every {trainer.save_every} epochs: what a kill can cost. SIGTERM, Ctrl-C lose nothing.",
    ]  # fmt: skip
    if set(training) & set(validation):
        lines.append("Only one volume: retrieval@1 is measured on fresh pairs of the volume that is trained on.")
    if hu_without_ct(trainer.recipe, units):
        lines.append('WARNING: ssl.intensity is "hu", but not all channels are CT; those get the z-score equivalents.')
    masks = mask_maker(trainer.plans_manager, trainer.configuration_manager, trainer.dataset_json)
    if masks is not None:
        lines.append(f"No ssl_foreground in dataset.json, so no label is read; {masks.describe()}.")
    return lines

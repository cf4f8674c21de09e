"""Plans for pretraining: a preset, or another dataset's plan, on top of what nnU-Net's planner says about the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet import memory
from nnunet_ssl.nnunet.datasets import RawDataset, dataset_name, environment_folder, load_json, open_dataset
from nnunet_ssl.nnunet.planners import (
    check_plans_name,
    existing_plans,
    full_shape,
    resolved,
    stock_plan,
    write_plans,
)
from nnunet_ssl.nnunet.preprocessing import share_data
from nnunet_ssl.nnunet.presets import apply_preset, is_ct, limit_patches, load_preset
from nnunet_ssl.nnunet.recipe import parse
from nnunet_ssl.nnunet.settings import DATA_KEYS, check_keys, collect, complete, merge, recipe_class

COPIED_KEYS = ("patch_size", "batch_size", "architecture", *DATA_KEYS)  # from the target's plan by --like


@dataclass(frozen=True)
class PlanRequest:
    """What ``nnunet_ssl plan`` was asked for; see its help."""

    dataset: int | str
    preset: str = "vox2vec"
    like: int | str | None = None
    like_plans: str = "nnUNetPlans"
    planner: str | None = None
    name: str | None = None
    gpu_memory_gb: float | None = None
    overlays: Sequence[str] = ()
    settings: Sequence[str] = ()
    config: str | None = None
    inherits_from: str | None = None

    @property
    def plans_name(self) -> str:
        """The name given, or ``nnssl_<preset>Plans``, with --like ``nnssl_like<ID>Plans``."""
        if self.name:
            return check_plans_name(self.name)
        return f"nnssl_{self.preset}Plans" if self.like is None else f"nnssl_like{_short(self.like)}Plans"


@dataclass
class Planned:
    """A written plan: where, its content, the configurations that this call made or changed, and notes for the user."""

    dataset: RawDataset
    plans: dict[str, Any]
    path: Path
    configurations: list[str]
    notes: list[str] = field(default_factory=list)


def _short(identifier: int | str) -> str:
    text = str(identifier)
    return str(int(text[7:10])) if text.startswith("Dataset") else text


def make_plan(request: PlanRequest) -> Planned:
    """Plan and write the plans file. Raises UserError with nothing written for whatever cannot be planned."""
    dataset = open_dataset(request.dataset)
    older = existing_plans(dataset, request.plans_name)
    changes = collect(request.overlays, request.settings)
    if request.config and older is not None:
        plans, notes = older, []
    else:
        plans, notes = _base_plan(dataset, request, {} if request.config else changes)
    names = [name for name, content in plans["configurations"].items() if "inherits_from" not in content]
    if request.config:
        add_configuration(plans, request.config, request.inherits_from, changes)
        names = [request.config]
    for name in names:
        notes += check_configuration(plans, name, dataset)
    notes += share_data(dataset, plans)
    mark = {"command": "plan", "preset": None if request.like is not None else request.preset}
    if request.like is not None:
        mark["like"] = {"dataset": dataset_name(request.like), "plans": request.like_plans}
    path = write_plans(dataset, plans, older, **({} if request.config and older is not None else mark))
    return Planned(dataset, plans, path, names, notes)


def _base_plan(dataset: RawDataset, request: PlanRequest, changes: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A plan whose configurations all carry a complete ``ssl`` block."""
    if request.like is not None:
        plans, notes = like_plan(dataset, request)
    else:
        preset = load_preset(request.preset)
        planner = request.planner or preset["planner"]
        spacing = changes.get("spacing", preset.get("spacing_mm"))
        plans = stock_plan(dataset, planner, request.plans_name, spacing, request.gpu_memory_gb)
        notes = apply_preset(plans, preset, dataset.channels)
    notes += limit_patches(plans)
    for name, configuration in plans["configurations"].items():
        if "ssl" in configuration:
            changed = apply_changes(configuration, changes, f"{plans['plans_name']}, {name}", len(plans["configurations"]) > 1)
            plans["configurations"][name] = changed
            if request.gpu_memory_gb is not None:
                notes += fit_memory(changed, name, len(dataset.channels), request.gpu_memory_gb, changes)
    return plans, notes


def apply_changes(
    configuration: Mapping[str, Any], changes: Mapping[str, Any], where: str, several: bool = False
) -> dict[str, Any]:
    """A configuration with changes applied, its ``ssl`` block complete, pairs_per_batch and batch_size equal.

    ``several``: the changes go to 2d and 3d configurations alike; patches and spacings only where the axes fit.
    """
    check_keys(changes, configuration, where)
    axes = len(configuration["patch_size"])
    fitting = {
        key: value
        for key, value in changes.items()
        if not (several and key in ("patch_size", "spacing") and isinstance(value, list) and len(value) != axes)
    }
    changed = merge(configuration, fitting)
    pairs = changes.get("ssl", {}).get("pairs_per_batch") if isinstance(changes.get("ssl", {}), Mapping) else None
    if not isinstance(changed["ssl"], Mapping):
        raise UserError(f"ssl of {where} has to be an object, e.g. --set ssl.temperature=0.07.")
    changed["ssl"] = complete({**changed["ssl"], "pairs_per_batch": pairs})
    if pairs is not None:
        changed["batch_size"] = pairs
    changed["ssl"]["pairs_per_batch"] = changed["batch_size"]
    return changed


def like_plan(dataset: RawDataset, request: PlanRequest) -> tuple[dict[str, Any], list[str]]:
    """The architecture, patch, spacing, normalisation and transpose of another dataset's plan, for these images."""
    target = dataset_name(request.like or "")
    folder = environment_folder("nnUNet_preprocessed") / target
    source_path = folder / f"{request.like_plans}.json"
    if not source_path.is_file():
        known = [p.stem for p in sorted(folder.glob("*Plans*.json"))]
        raise UserError(
            f"{target} has no plan {request.like_plans} (there: {', '.join(known) or 'none'}). Plan it first with "
            f"`nnUNetv2_plan_and_preprocess -d {_short(request.like or '')}`, or name another with --like-plans."
        )
    source = load_json(source_path)
    plans = stock_plan(dataset, request.planner or "ExperimentPlanner", request.plans_name)
    planned = next(iter(plans["configurations"].values()))
    for key in ("transpose_forward", "transpose_backward"):
        plans[key] = source[key]
    notes = _copy_intensities(plans, source, load_json(folder / "dataset.json"), dataset)
    configurations = {}
    for name in source["configurations"]:
        content = resolved(source, name)
        if not content.get("previous_stage"):  # a cascade needs labels
            copied = {**deepcopy(planned), **{key: deepcopy(content[key]) for key in COPIED_KEYS}}
            copied |= {"data_identifier": f"{request.plans_name}_{name}", "batch_dice": content.get("batch_dice", False)}
            copied |= _normalisation(planned, content, dataset, load_json(folder / "dataset.json"))
            copied["median_image_size_in_voxels"] = full_shape(plans, copied, dataset)
            copied["ssl"] = {"objective": "vox2vec"}
            configurations[name] = copied
    plans["configurations"] = configurations
    return plans, notes


def channel_type(channel: str) -> str:
    """The normalisation that nnU-Net gives to a channel of that name."""
    from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

    return str(get_normalization_scheme(channel).__name__)


def matching_channels(wanted: Sequence[str], offered: Sequence[str]) -> list[int | None]:
    """For each wanted channel the offered one of the same name, else the one in its place if of the same type, else None."""
    names = [name.casefold() for name in offered]
    matches: list[int | None] = []
    for index, channel in enumerate(wanted):
        if channel.casefold() in names:
            matches.append(names.index(channel.casefold()))
        elif index < len(offered) and channel_type(channel) == channel_type(offered[index]):
            matches.append(index)
        else:
            same = [i for i, other in enumerate(offered) if channel_type(other) == channel_type(channel)]
            matches.append(same[0] if same else None)
    return matches


def _channels(dataset_json: Mapping[str, Any]) -> list[str]:
    return list((dataset_json.get("channel_names") or dataset_json.get("modality") or {}).values())


def _normalisation(
    planned: Mapping[str, Any], source: Mapping[str, Any], dataset: RawDataset, source_json: Mapping[str, Any]
) -> dict[str, Any]:
    matches = matching_channels(dataset.channels, _channels(source_json))
    return {
        key: [planned[key][i] if match is None else source[key][match] for i, match in enumerate(matches)]
        for key in ("normalization_schemes", "use_mask_for_norm")
    }


def _copy_intensities(
    plans: dict[str, Any], source: Mapping[str, Any], source_json: Mapping[str, Any], dataset: RawDataset
) -> list[str]:
    """Intensity properties of matching channels, in place; a note for each channel that matches none."""
    notes, key = [], "foreground_intensity_properties_per_channel"
    for index, match in enumerate(matching_channels(dataset.channels, _channels(source_json))):
        if match is None:
            notes.append(f"warning: channel {dataset.channels[index]} has no counterpart of its type; normalised by its own")
        else:
            plans[key][str(index)] = deepcopy(source[key][str(match)])
    return notes


def add_configuration(
    plans: dict[str, Any], name: str, parent: str | None, changes: Mapping[str, Any], cls: type[Any] | None = None
) -> None:
    """Add configuration ``name``, which inherits everything but the changes, to a plan, in place.

    Blocks are written whole, because nnU-Net's inheritance is shallow. A change of the data (spacing, normalisation) gets its
    own preprocessed folder.
    """
    configurations = plans["configurations"]
    if parent is None:
        roots = [key for key, content in configurations.items() if "ssl" in content and "inherits_from" not in content]
        parent = "3d_fullres" if "3d_fullres" in roots else roots[0]
    if name in configurations and configurations[name].get("inherits_from") is None:
        raise UserError(f"{name} is a configuration of the plan itself. Leave --config out to change it, or use another name.")
    check_plans_name(name)
    base = resolved(plans, parent)
    if "ssl" not in base:
        raise UserError(f"{parent} has no ssl block to inherit. Choose another with --inherits-from.")
    if cls is None:
        changed = apply_changes(base, changes, f"{plans['plans_name']}, {name}")
    else:
        check_keys(changes, base, f"{plans['plans_name']}, {name}")
        changed = merge(base, changes)
        changed["ssl"] = complete(changed["ssl"], cls)
    own = {key: value for key, value in changed.items() if key == "ssl" or value != base.get(key)}
    if any(key in own for key in DATA_KEYS):
        own["data_identifier"] = f"{plans['plans_name']}_{name}"
    configurations[name] = {"inherits_from": parent, **own}


def check_configuration(plans: Mapping[str, Any], name: str, dataset: RawDataset) -> list[str]:
    """UserError for a patch that the network cannot take; notes on what the Recipe does with these images."""
    configuration = resolved(plans, name)
    if "ssl" not in configuration:
        return []
    patch, stride = configuration["patch_size"], memory.total_stride(configuration["architecture"])
    fits = isinstance(patch, list) and len(patch) == len(stride) and all(isinstance(p, int) and p > 0 for p in patch)
    if not fits or any(size % step for size, step in zip(patch, stride, strict=True)):
        raise UserError(f"patch_size of {name} is {patch}; every axis has to be a multiple of the total stride {stride}.")
    if not isinstance(configuration["batch_size"], int) or configuration["batch_size"] < 1:
        raise UserError(f"batch_size of {name} is {configuration['batch_size']!r}; expected a whole number from 1 up.")
    memory.measure(configuration["architecture"], len(dataset.channels), patch)
    others = [channel for channel in dataset.channels if not is_ct(channel)]
    if others and configuration["ssl"].get("intensity") == "auto":
        return [f"{name}: {', '.join(others)} is not CT: intensities are varied in z-score units (noise_z, gain, shift)"]
    return []


def fit_memory(
    configuration: dict[str, Any], name: str, channels: int, gpu_memory_gb: float, fixed: Mapping[str, Any]
) -> list[str]:
    """Fewer pairs, then a smaller patch, until the expected memory fits, in place; returns notes.

    What the user has set (``fixed``) stays. UserError if nothing fits.
    """
    stride = memory.total_stride(configuration["architecture"])
    median = configuration["median_image_size_in_voxels"]
    before = (configuration["batch_size"], list(configuration["patch_size"]))
    recipe = parse(configuration["ssl"], recipe_class(configuration["ssl"]))
    may_batch = "batch_size" not in fixed and "pairs_per_batch" not in fixed.get("ssl", {})
    while True:
        patch, pairs = configuration["patch_size"], configuration["batch_size"]
        cost = memory.measure(configuration["architecture"], channels, patch)
        needed = memory.step_gib(cost, pairs, recipe, half=True)
        if needed <= gpu_memory_gb:
            break
        axes = [i for i in range(len(patch)) if patch[i] > stride[i]] if "patch_size" not in fixed else []
        if may_batch and (pairs > 2 or (pairs > 1 and not axes)):
            configuration["batch_size"] = pairs - 1
        elif axes:
            axis = max(axes, key=lambda i: patch[i] / median[i])
            patch[axis] -= stride[axis]
        else:
            raise UserError(
                f"{name} needs about {needed:.1f} GiB with {pairs} pairs of {patch}, more than the {gpu_memory_gb:g} asked for. "
                "Choose a smaller network (--preset tiny or another --planner), fewer ssl.voxels_per_pair, or more memory."
            )
    configuration["ssl"]["pairs_per_batch"] = configuration["batch_size"]
    after = (configuration["batch_size"], list(configuration["patch_size"]))
    if after == before:
        return []
    return [f"{name}: {after[0]} pairs of {after[1]} instead of {before[0]} of {before[1]}, to fit {gpu_memory_gb:g} GiB"]


def describe(planned: Planned, name: str) -> list[str]:
    """What ``plan`` prints of a configuration: network, patch in voxels and mm, voxels a batch, expected memory."""
    configuration = resolved(planned.plans, name)
    recipe = parse(configuration["ssl"], recipe_class(configuration["ssl"]))
    patch, spacing = configuration["patch_size"], configuration["spacing"]
    cost = memory.measure(configuration["architecture"], len(planned.dataset.channels), patch)
    pairs = configuration["batch_size"]
    size = " x ".join(str(p) for p in patch)
    extent = " x ".join(f"{p * s:.0f}" for p, s in zip(patch, spacing, strict=True))
    steps = " x ".join(f"{s:.3g}" for s in spacing)
    head = memory.projector_parameters(cost, recipe)
    voxels = 1
    for p in patch:
        voxels *= p
    gpu, cpu = (memory.step_gib(cost, pairs, recipe, half) for half in (True, False))
    network = configuration["architecture"]["network_class_name"].rsplit(".", 1)[-1]
    return [
        f"network      {network}, {cost.parameters:,} parameters, projector {head:,}; levels {list(cost.channels)}",
        f"patch        {size} voxels = {extent} mm at {steps} mm",
        f"a batch      {pairs} pairs from {recipe.volumes_per_batch} volume(s): {2 * pairs * voxels:,} image voxels, "
        f"up to {pairs * recipe.voxels_per_pair:,} voxel pairs in the loss",
        f"memory       about {gpu:.1f} GiB on a GPU (16-bit activations), {cpu:.1f} GiB on a CPU",
        f"training     {recipe.num_epochs} epochs of {recipe.num_iterations_per_epoch} iterations, {recipe.optimizer} "
        f"{recipe.initial_lr:g} {recipe.schedule}",
    ]

"""One configuration of a plan: changes, checks, inheritance, and how many pairs fit into a memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet import memory
from nnunet_ssl.nnunet.datasets import RawDataset
from nnunet_ssl.nnunet.planners import check_plans_name, full_shape, resolved
from nnunet_ssl.nnunet.presets import is_ct
from nnunet_ssl.nnunet.recipe import parse
from nnunet_ssl.nnunet.settings import DATA_KEYS, check_keys, complete, merge, recipe_class


def apply_changes(
    configuration: Mapping[str, Any],
    changes: Mapping[str, Any],
    where: str,
    several: bool = False,
    cls: type[Any] | None = None,
) -> dict[str, Any]:
    """A configuration with changes applied, its ``ssl`` block complete, pairs_per_batch and batch_size equal.

    ``several``: the changes go to 2d and 3d configurations alike; patches and spacings only where the axes fit.
    ``cls``: the dataclass of the ``ssl`` block where it is not a pretraining's Recipe.
    """
    if cls is None and isinstance(configuration.get("ssl"), Mapping):
        configuration = {**configuration, "ssl": complete(configuration["ssl"])}
    configuration = _of_objective(configuration, changes)
    check_keys(changes, configuration, where)
    axes = len(configuration["patch_size"])
    fitting = {
        key: value
        for key, value in changes.items()
        if not (several and key in ("patch_size", "spacing") and isinstance(value, list) and len(value) != axes)
    }
    changed = merge(configuration, fitting)
    if not isinstance(changed["ssl"], Mapping):
        raise UserError(f"ssl of {where} has to be an object, e.g. --set ssl.seed=1.")
    if cls is not None:
        changed["ssl"] = complete(changed["ssl"], cls)
        return changed
    pairs = changes.get("ssl", {}).get("pairs_per_batch")
    changed["ssl"] = complete({**changed["ssl"], "pairs_per_batch": pairs})
    if pairs is not None:
        changed["batch_size"] = pairs
    changed["ssl"]["pairs_per_batch"] = changed["batch_size"]
    return changed


def _of_objective(configuration: Mapping[str, Any], changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration whose ``ssl`` block is that of the objective that the changes ask for: all defaults where it is
    another one, whose settings mean nothing to it.
    """
    block, changed = configuration.get("ssl"), changes.get("ssl")
    if not isinstance(block, Mapping) or not isinstance(changed, Mapping) or "objective" not in block:
        return configuration
    objective = changed.get("objective", block["objective"])
    return configuration if objective == block["objective"] else {
        **configuration, "ssl": complete({"objective": objective})
    }  # fmt: skip


def checked_spacing(spacing: Any) -> list[float]:
    """The spacing (mm) if it is one, else UserError."""
    good = isinstance(spacing, list) and len(spacing) in (2, 3)
    if not good or not all(isinstance(s, int | float) and s > 0 for s in spacing):
        raise UserError(f"spacing is {spacing!r}; expected positive numbers in mm, e.g. --set spacing=[2,1,1].")
    return [float(s) for s in spacing]


def respace(plans: Mapping[str, Any], configuration: dict[str, Any], dataset: RawDataset) -> None:
    """Spacing as the user gave it (mm; z, y, x of the files) -> the plan's order of axes, and median image size."""
    spacing = checked_spacing(configuration["spacing"])
    if len(spacing) == 3:
        configuration["spacing"] = [float(spacing[axis]) for axis in plans["transpose_forward"]]
    configuration["median_image_size_in_voxels"] = full_shape(plans, configuration, dataset)


def add_configuration(
    plans: dict[str, Any],
    name: str,
    parent: str | None,
    changes: Mapping[str, Any],
    dataset: RawDataset,
    cls: type[Any] | None = None,
    gpu_memory_gb: float | None = None,
) -> list[str]:
    """Add configuration ``name``, which inherits everything but the changes, to a plan, in place; returns notes.

    Blocks are written whole, because nnU-Net's inheritance is shallow. A change of the data (spacing, normalisation)
    gets its own preprocessed folder. ``cls``: the dataclass of the ``ssl`` block, default the objective's Recipe.
    ``gpu_memory_gb``: what a pretraining step may take, see :func:`fit_memory`.
    """
    configurations = plans["configurations"]
    if parent is None:
        roots = [key for key, content in configurations.items() if "ssl" in content and "inherits_from" not in content]
        parent = "3d_fullres" if "3d_fullres" in roots else roots[0]
    if name in configurations and configurations[name].get("inherits_from") is None:
        raise UserError(f"{name} is one of the plan's own. Leave --config out to change it, or use another name.")
    check_plans_name(name)
    base = resolved(plans, parent)
    if "ssl" not in base:
        raise UserError(f"{parent} has no ssl block to inherit. Choose another with --inherits-from.")
    changed = apply_changes(base, changes, f"{plans['plans_name']}, {name}", cls=cls)
    if "spacing" in changes:
        respace(plans, changed, dataset)
    notes = []
    if gpu_memory_gb is not None:
        notes = fit_memory(changed, name, len(dataset.channels), gpu_memory_gb, changes)
    own = {key: value for key, value in changed.items() if key == "ssl" or value != base.get(key)}
    if any(key in own for key in DATA_KEYS):
        own["data_identifier"] = f"{plans['plans_name']}_{name}"
    configurations[name] = {"inherits_from": parent, **own}
    return notes


def check_configuration(plans: Mapping[str, Any], name: str, dataset: RawDataset) -> list[str]:
    """UserError for a patch that the network cannot take; notes on what the Recipe does with these images."""
    configuration = resolved(plans, name)
    if "ssl" not in configuration:
        return []
    patch, stride = configuration["patch_size"], memory.total_stride(configuration["architecture"])
    fits = isinstance(patch, list) and len(patch) == len(stride) and all(isinstance(p, int) and p > 0 for p in patch)
    if not fits or any(size % step for size, step in zip(patch, stride, strict=True)):
        raise UserError(f"patch_size of {name} is {patch}; its axes have to be multiples of the total stride {stride}.")
    if not isinstance(configuration["batch_size"], int) or configuration["batch_size"] < 1:
        found = configuration["batch_size"]
        raise UserError(f"batch_size of {name} is {found!r}; expected a whole number from 1 up.")
    memory.measure(configuration["architecture"], len(dataset.channels), patch)
    others = [channel for channel in dataset.channels if not is_ct(channel)]
    intensity = configuration["ssl"].get("intensity")
    if others and intensity in ("auto", "hu") and "noise_z" in configuration["ssl"]:  # has settings for either
        asked = ' although ssl.intensity is "hu"' if intensity == "hu" else ""
        text = f"{', '.join(others)} is not CT: intensities vary in z-score units (noise_z, gain, shift){asked}"
        return [f"{name}: {text}"]
    return []


def _can_shrink(patch: list[int], stride: list[int], axis: int) -> bool:
    """Whether the coarsest level has more than one voxel, as instance norm needs, with one less along ``axis``."""
    coarsest = [size // step - (i == axis) for i, (size, step) in enumerate(zip(patch, stride, strict=True))]
    return coarsest[axis] >= 1 and math.prod(coarsest) > 1


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
    cost = memory.measure(configuration["architecture"], channels, configuration["patch_size"], recipe.widened)
    while True:
        patch, pairs = configuration["patch_size"], configuration["batch_size"]
        needed = memory.step_gib(cost, pairs, patch, recipe, half=True)
        if needed <= gpu_memory_gb:
            break
        axes = [] if "patch_size" in fixed else [i for i in range(len(patch)) if _can_shrink(patch, stride, i)]
        if may_batch and (pairs > 2 or (pairs > 1 and not axes)):
            configuration["batch_size"] = pairs - 1
        elif axes:
            axis = max(axes, key=lambda i: patch[i] / median[i])
            patch[axis] -= stride[axis]
            cost = memory.measure(configuration["architecture"], channels, patch, recipe.widened)
        else:
            raise UserError(
                f"{name} needs about {needed:.1f} GiB with {pairs} pairs of {patch}, asked for were {gpu_memory_gb:g}. "
                "Choose a smaller network (--preset tiny), fewer ssl.voxels_per_pair or more memory."
            )
    configuration["ssl"]["pairs_per_batch"] = configuration["batch_size"]
    after = (configuration["batch_size"], list(configuration["patch_size"]))
    if after == before:
        return []
    fitted = f"{after[0]} pairs of {after[1]} instead of {before[0]} of {before[1]}"
    return [f"{name}: {fitted}, to fit {gpu_memory_gb:g} GiB"]

"""Plans for pretraining: a preset or another dataset's plan, on top of what nnU-Net's planner says about the images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet import memory
from nnunet_ssl.nnunet.configurations import (
    add_configuration,
    apply_changes,
    check_configuration,
    checked_spacing,
    fit_memory,
    respace,
)
from nnunet_ssl.nnunet.datasets import RawDataset, dataset_name, open_dataset
from nnunet_ssl.nnunet.like import like_plan
from nnunet_ssl.nnunet.planners import check_plans_name, existing_plans, resolved, stock_plan, write_plans
from nnunet_ssl.nnunet.preprocessing import remember_data, share_data
from nnunet_ssl.nnunet.presets import apply_preset, limit_patches, load_preset
from nnunet_ssl.nnunet.recipe import parse
from nnunet_ssl.nnunet.settings import check_ssl_names, collect, recipe_class


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
        """The name given, or ``nnssl_<preset>Plans``; with --like ``nnssl_like<ID>Plans``, where it goes with a preset
        other than vox2vec ``nnssl_<preset>_like<ID>Plans``.
        """
        if self.name:
            return check_plans_name(self.name)
        if self.like is None:
            return f"nnssl_{self.preset}Plans"
        return f"nnssl_{'' if self.preset == 'vox2vec' else self.preset + '_'}like{_short(self.like)}Plans"


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
    _check_planner(request)
    dataset = open_dataset(request.dataset)
    older = existing_plans(dataset, request.plans_name)
    remember_data(dataset, older or {})
    changes = collect(request.overlays, request.settings)
    if request.config and older is not None:
        if request.planner is not None:
            raise UserError(
                f"--planner {request.planner} is for a new plan; {request.plans_name} is there. "
                "--config only adds to it: give the new plan another name with -n."
            )
        plans, notes = older, []
    else:
        given = changes.get("ssl")
        objective = {**load_preset(request.preset)["ssl"], **(given if isinstance(given, dict) else {})}
        check_ssl_names(changes, recipe_class(objective))
        plans, notes = _base_plan(dataset, request, {} if request.config else changes)
    names = [name for name, content in plans["configurations"].items() if "inherits_from" not in content]
    if request.config:
        notes += add_configuration(
            plans, request.config, request.inherits_from, changes, dataset, gpu_memory_gb=request.gpu_memory_gb
        )
        names = [request.config]
    for name in names:
        notes += check_configuration(plans, name, dataset)
    notes += share_data(dataset, plans)
    if request.like is None and not request.config:
        notes.insert(0, f"preset {request.preset}: {load_preset(request.preset)['description']}")
    mark: dict[str, Any] = {"command": "plan", "preset": request.preset}
    if request.like is not None:
        mark["like"] = {"dataset": dataset_name(request.like), "plans": request.like_plans}
    path = write_plans(dataset, plans, older, **({} if request.config and older is not None else mark))
    return Planned(dataset, plans, path, names, notes)


def _check_planner(request: PlanRequest) -> None:
    """UserError for a --planner whose network the plan would not take."""
    if request.planner is None:
        return
    if request.like is not None:
        raise UserError(f"--planner {request.planner} does not go with --like, which copies the network of a plan.")
    if "architecture" in load_preset(request.preset):
        raise UserError(
            f"--planner {request.planner} does not go with --preset {request.preset}, which has its own network. Use "
            "--preset nnunet, which takes the planner's."
        )


def _base_plan(
    dataset: RawDataset, request: PlanRequest, changes: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """A plan whose configurations all carry a complete ``ssl`` block."""
    if request.like is not None:
        plans, notes = like_plan(dataset, request.plans_name, request.like, request.like_plans, request.preset)
    else:
        preset = load_preset(request.preset)
        planner = request.planner or preset["planner"]
        spacing = checked_spacing(changes["spacing"]) if "spacing" in changes else preset.get("spacing_mm")
        plans = stock_plan(dataset, planner, request.plans_name, spacing, request.gpu_memory_gb)
        notes = apply_preset(plans, preset, dataset.channels)
        changes = {key: value for key, value in changes.items() if key != "spacing"}  # the planner has it already
    notes += limit_patches(plans)
    for name, configuration in plans["configurations"].items():
        if "ssl" in configuration:
            several = len(plans["configurations"]) > 1
            changed = apply_changes(configuration, changes, f"{plans['plans_name']}, {name}", several)
            if "spacing" in changes:
                respace(plans, changed, dataset)
            plans["configurations"][name] = changed
            if request.gpu_memory_gb is not None:
                notes += fit_memory(changed, name, len(dataset.channels), request.gpu_memory_gb, changes)
    return plans, notes


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def describe(planned: Planned, name: str) -> list[str]:
    """What ``plan`` prints of a configuration: network, patch in voxels and mm, voxels a batch, expected memory."""
    configuration = resolved(planned.plans, name)
    recipe = parse(configuration["ssl"], recipe_class(configuration["ssl"]))
    patch, spacing = configuration["patch_size"], configuration["spacing"]
    cost = memory.measure(configuration["architecture"], len(planned.dataset.channels), patch, recipe.widened)
    pairs = configuration["batch_size"]
    size = " x ".join(str(p) for p in patch)
    extent = " x ".join(f"{p * s:.0f}" for p, s in zip(patch, spacing, strict=True))
    steps = " x ".join(f"{s:.3g}" for s in spacing)
    head = memory.projector_parameters(cost, recipe)
    gpu, cpu = (memory.step_gib(cost, pairs, patch, recipe, half) for half in (True, False))
    network = configuration["architecture"]["network_class_name"].rsplit(".", 1)[-1]
    volumes = _counted(recipe.volumes_per_batch, "volume")
    return [
        f"network      {network}, {cost.parameters:,} parameters, projector {head:,}; levels {list(cost.channels)}",
        f"patch        {size} voxels = {extent} mm at {steps} mm",
        f"a batch      {pairs} pairs of {volumes}: {2 * pairs * math.prod(patch):,} image voxels, "
        f"up to {pairs * recipe.points(patch):,} voxel pairs in the loss",
        f"memory       about {gpu:.1f} GiB on a GPU (16-bit activations), {cpu:.1f} GiB on a CPU",
        f"training     {recipe.num_epochs} epochs of {recipe.num_iterations_per_epoch} iterations, {recipe.optimizer} "
        f"{recipe.initial_lr:g} {recipe.schedule}",
    ]

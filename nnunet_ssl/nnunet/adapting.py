"""Plans for a labelled dataset that fit a pretrained network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet import memory
from nnunet_ssl.nnunet.configurations import add_configuration, apply_changes, check_configuration, respace
from nnunet_ssl.nnunet.datasets import RawDataset, open_dataset
from nnunet_ssl.nnunet.downstream.recipe import DownstreamRecipe
from nnunet_ssl.nnunet.like import matching_channels
from nnunet_ssl.nnunet.planners import (
    MARK,
    check_plans_name,
    existing_plans,
    full_shape,
    median_spacing,
    resolved,
    stock_plan,
    take_order,
    write_plans,
)
from nnunet_ssl.nnunet.planning import Planned
from nnunet_ssl.nnunet.preprocessing import data_facts, remember_data, share_data
from nnunet_ssl.nnunet.reading import Pretrained, read_checkpoint
from nnunet_ssl.nnunet.remarks import remarks
from nnunet_ssl.nnunet.settings import SPACINGS, check_ssl_names, collect, complete
from nnunet_ssl.nnunet.source import INTENSITIES, Source, own_plan, source_of
from nnunet_ssl.nnunet.weights import transfer

NEAR = 1.5  # auto: the pretraining's spacing, if no axis differs from the target's median by a larger factor
GPU_MEMORY_GB = 8.0  # nnU-Net's default
OF_DATASET = 0.05  # nnU-Net: a batch holds at most this part of the dataset's voxels


@dataclass(frozen=True)
class AdaptRequest:
    """What ``nnunet_ssl adapt`` was asked for; see its help."""

    dataset: int | str
    checkpoint: str
    name: str | None = None
    spacing: str = "auto"
    gpu_memory_gb: float | None = None
    overlays: Sequence[str] = ()
    settings: Sequence[str] = ()
    config: str | None = None
    inherits_from: str | None = None


def make_adapted(request: AdaptRequest, pretrained: Pretrained | None = None) -> Planned:
    """Write the target's plan for a checkpoint. UserError, with nothing written, where they do not go together.

    ``pretrained``: the request's checkpoint where it was read before.
    """
    if request.spacing not in SPACINGS:
        raise UserError(f"--spacing is {request.spacing}; expected {', '.join(SPACINGS)}.")
    pretrained = pretrained or read_checkpoint(request.checkpoint)
    source = source_of(pretrained)
    dataset = open_dataset(request.dataset)
    if dataset.masked or dataset.json.get("ssl_foreground"):
        raise UserError(f"{dataset.name} has no labels to train on. adapt plans for a labelled dataset (-d ID).")
    name = check_plans_name(request.name or f"{source.plans_name.removesuffix('Plans')}_{source.objective}Plans")
    older = existing_plans(dataset, name)
    _same_checkpoint(older, pretrained, dataset, name)
    remember_data(dataset, older or {})
    changes = collect(request.overlays, request.settings)
    check_ssl_names(changes, DownstreamRecipe)
    notes: list[str] = []
    if older is not None and request.config:
        if request.gpu_memory_gb is not None:
            raise UserError("--gpu-memory is for a new plan. Give the added configuration --set batch_size=N instead.")
        plans = older
    else:
        plans, notes = _base(dataset, source, name, request)
        block = {"pretrained": _pretrained_block(pretrained, source)}
        block |= {key: source.recipe.get(key) for key in ("mirror_axes", "representation_channels")}
        _put_block(plans, source.root, block, {} if request.config else changes, dataset)
    configuration = source.root
    if request.config:
        configuration = request.config
        parent = request.inherits_from or source.root
        add_configuration(plans, configuration, parent, changes, dataset, DownstreamRecipe)
    notes += check_configuration(plans, configuration, dataset)
    notes += check_weights(plans, configuration, dataset, pretrained)
    notes += remarks(plans, configuration, dataset)
    notes += share_data(dataset, plans)
    path = write_plans(dataset, plans, older, command="adapt", pretrained_sha256=pretrained.sha256)
    return Planned(dataset, plans, path, [configuration], notes)


def _same_checkpoint(older: Mapping[str, Any] | None, pretrained: Pretrained, dataset: RawDataset, name: str) -> None:
    if older is None:
        return
    sha256 = older[MARK].get("pretrained_sha256")
    if sha256 != pretrained.sha256:
        found = f"the checkpoint {sha256[:12]}..." if sha256 else "a pretraining"
        raise UserError(
            f"{dataset.name} already has a plan {name}, made for {found}; this one is {pretrained.sha256[:12]}... . "
            "Results of both would share their folders. Choose another name with -n NAME."
        )


def _pretrained_block(pretrained: Pretrained, source: Source) -> dict[str, Any]:
    return {
        "path": str(Path(os.path.abspath(pretrained.path))),
        "sha256": pretrained.sha256,
        "objective": source.objective,
        "recipe": source.recipe,
    }


def _put_block(
    plans: dict[str, Any], name: str, block: Mapping[str, Any], changes: Mapping[str, Any], dataset: RawDataset
) -> None:
    """Give a configuration its downstream ``ssl`` block and the user's changes, in place."""
    configuration = {**plans["configurations"][name], "ssl": complete(block, DownstreamRecipe)}
    changed = apply_changes(configuration, changes, f"{plans['plans_name']}, {name}", cls=DownstreamRecipe)
    if "spacing" in changes:
        respace(plans, changed, dataset)
    if data_facts(plans, name) != data_facts({**plans, "configurations": {name: changed}}, name):
        changed["data_identifier"] = f"{plans['plans_name']}_{name}"
    plans["configurations"][name] = changed


def _base(dataset: RawDataset, source: Source, name: str, request: AdaptRequest) -> tuple[dict[str, Any], list[str]]:
    """The target's own plan under a new name where it already matches, else a new one for the pretrained network."""
    own = own_plan(dataset, source)
    if own is not None:
        plans = deepcopy(own)
        plans["plans_name"] = name
        configuration = resolved(own, source.root)
        for key in ("next_stage", "previous_stage", "ssl"):
            configuration.pop(key, None)
        plans["configurations"] = {source.root: configuration}
        return plans, [f"{own['plans_name']} already matches the pretraining: its patch, batch size and data are kept"]
    return _new_plan(dataset, source, name, request)


def _new_plan(
    dataset: RawDataset, source: Source, name: str, request: AdaptRequest
) -> tuple[dict[str, Any], list[str]]:
    plans = stock_plan(dataset, "ExperimentPlanner", name)
    axes = len(source.configuration["patch_size"])
    planned = next((c for c in plans["configurations"].values() if len(c["patch_size"]) == axes), None)
    if planned is None:
        raise UserError(f"The pretrained network is {axes}D, the images of {dataset.name} are not.")
    own_spacing = _in_source_order(plans, source, axes)
    take_order(plans, source.plans)
    configuration = deepcopy(planned)
    for key in ("architecture", "patch_size"):
        configuration[key] = deepcopy(source.configuration[key])
    configuration["spacing"], notes = choose_spacing(dataset, source, own_spacing, request.spacing)
    notes += _normalise(plans, configuration, source, dataset)
    configuration["median_image_size_in_voxels"] = full_shape(plans, configuration, dataset)
    configuration["data_identifier"] = f"{name}_{source.root}"
    configuration["batch_size"] = batch_size(configuration, dataset, source, request.gpu_memory_gb or GPU_MEMORY_GB)
    plans["configurations"] = {source.root: configuration}
    return plans, notes


def _in_source_order(plans: Mapping[str, Any], source: Source, axes: int) -> list[float]:
    """nnU-Net's spacing for the target (mm), axes in the order of the pretraining's plan."""
    largest = max(plans["configurations"].values(), key=lambda c: len(c["spacing"]))["spacing"]
    whole = [*plans["original_median_spacing_after_transp"][: 3 - len(largest)], *largest]
    files = [whole[axis] for axis in plans["transpose_backward"]]
    return [float(files[axis]) for axis in source.plans["transpose_forward"]][3 - axes :]


def choose_spacing(
    dataset: RawDataset, source: Source, own: Sequence[float], wanted: str
) -> tuple[list[float], list[str]]:
    """(spacing in mm, notes): the pretraining's or the target's ``own``; ``auto`` by NEAR on the median spacing."""
    theirs = [float(s) for s in source.configuration["spacing"]]
    median = median_spacing(dataset, source.plans["transpose_forward"])[3 - len(theirs) :]
    ratio = max(max(a / b, b / a) for a, b in zip(theirs, median, strict=True))
    pretrained = wanted == "pretrained" or (wanted == "auto" and ratio <= NEAR)
    chosen = theirs if pretrained else list(own)
    why = f"median of the images {_mm(median)}, pretraining {_mm(theirs)}, factor {ratio:.2f}"
    if wanted == "auto" and not pretrained:
        why += "; --spacing pretrained keeps the pretraining's"
    return chosen, [f"spacing {_mm(chosen)}: the {'pretraining' if pretrained else 'target'}'s ({why})"]


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{s:.3g}" for s in spacing) + " mm"


def _normalise(
    plans: dict[str, Any], configuration: dict[str, Any], source: Source, dataset: RawDataset
) -> list[str]:
    """The pretraining's normalisation for channels of a type that it has seen, in place; a warning for all others."""
    notes = []
    for index, match in enumerate(matching_channels(dataset.channels, source.channels)):
        if match is None:
            notes.append(
                f"warning: channel {dataset.channels[index]} is of another type than the pretraining's "
                f"({', '.join(source.channels)}): it keeps its own normalisation, and the features may not transfer"
            )
            continue
        for key in ("normalization_schemes", "use_mask_for_norm"):
            configuration[key][index] = source.configuration[key][match]
        if configuration["normalization_schemes"][index] == "CTNormalization":
            plans[INTENSITIES][str(index)] = deepcopy(source.plans[INTENSITIES][str(match)])
    return notes


def batch_size(configuration: Mapping[str, Any], dataset: RawDataset, source: Source, gpu_memory_gb: float) -> int:
    """As many patches as fit: at most the pretraining's views and 5 % of the dataset's voxels; two at least."""
    patch = configuration["patch_size"]
    voxels = int(np.prod(patch))
    most = 2 * int(source.configuration["batch_size"])
    whole = float(np.prod(configuration["median_image_size_in_voxels"])) * len(dataset.cases)
    most = min(most, round(OF_DATASET * whole / voxels)) if len(patch) == 3 else most
    cost = memory.measure(configuration["architecture"], len(dataset.channels), patch)
    classes = len(dataset.json["labels"])
    while most > 2 and memory.supervised_gib(cost, most, classes, voxels) > gpu_memory_gb:
        most -= 1
    return max(most, 2)


def check_weights(plans: Mapping[str, Any], name: str, dataset: RawDataset, pretrained: Pretrained) -> list[str]:
    """Try the transfer without memory. UserError if too little of the network would be pretrained."""
    configuration = resolved(plans, name)
    network = memory.build(configuration["architecture"], len(dataset.channels), len(dataset.json["labels"]))
    report = transfer(network, pretrained)
    return [report.summary()] + [
        f"warning: {row['name']}: {row['reason']}" for row in report.tensors if row["status"] == "adapted"
    ]

"""What a pretrained file says about the plan that it was trained with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.datasets import RawDataset, plans_in
from nnunet_ssl.nnunet.like import channel_names
from nnunet_ssl.nnunet.planners import MARK, resolved
from nnunet_ssl.nnunet.presets import load_preset, window_normalisation
from nnunet_ssl.nnunet.reading import Pretrained

INTENSITIES = "foreground_intensity_properties_per_channel"


@dataclass(frozen=True)
class Source:
    """The pretraining's plan. ``configuration``: resolved; ``root``: the one that it inherits from in the end."""

    plans: dict[str, Any]
    configuration: dict[str, Any]
    root: str
    channels: list[str]
    objective: str
    recipe: dict[str, Any] = field(default_factory=dict)
    like_plans: str = "nnUNetPlans"  # the target's plan that --like copied

    @property
    def plans_name(self) -> str:
        """Its name."""
        return str(self.plans["plans_name"])


def source_of(pretrained: Pretrained) -> Source:
    """The plan of a checkpoint. UserError for one that does not know it."""
    if pretrained.published:
        return _published(pretrained)
    plans, name = pretrained.plans, pretrained.configuration
    if not plans or not name or not pretrained.dataset_json:
        raise UserError(
            f"{pretrained.path} does not say with which plan it was trained. Give a checkpoint_final.pth of a "
            "pretraining."
        )
    root = name
    while "inherits_from" in plans["configurations"][root]:
        root = plans["configurations"][root]["inherits_from"]
    like = plans.get(MARK, {}).get("like") or {}
    return Source(
        plans=plans,
        configuration=resolved(plans, name),
        root=root,
        channels=channel_names(pretrained.dataset_json),
        objective=pretrained.objective,
        recipe=dict((pretrained.ssl or {}).get("recipe") or {}),
        like_plans=like.get("plans", "nnUNetPlans"),
    )


def _published(pretrained: Pretrained) -> Source:
    """The published weights come without a plan: its values are the preset's, the widths are read from the weights."""
    preset = load_preset("vox2vec")
    first = pretrained.weights["encoder.first_conv.weight"]
    stages = {int(m[1]) for key in pretrained.weights if (m := re.match(r"encoder\.down_blocks\.(\d+)\.", key))}
    architecture = deepcopy(preset["architecture"])
    arguments = architecture["arch_kwargs"]
    arguments["base_channels"], arguments["num_scales"] = first.shape[0], len(stages) + 1
    arguments["strides"] = [[1, 1, 1], *[[2, 2, 2]] * len(stages)]
    configuration = {
        "spacing": preset["spacing_mm"],
        "patch_size": preset["patch_size"],
        "batch_size": preset["batch_size"],
        "architecture": architecture,
        "normalization_schemes": ["CTNormalization"] * first.shape[1],
        "use_mask_for_norm": [False] * first.shape[1],
    }
    properties = {str(i): window_normalisation({}, preset["window_hu"]) for i in range(first.shape[1])}
    plans = {
        "plans_name": "publishedPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        INTENSITIES: properties,
        "configurations": {"3d_fullres": configuration},
    }
    return Source(plans, configuration, "3d_fullres", ["CT"] * first.shape[1], "vox2vec")


def own_plan(dataset: RawDataset, source: Source) -> dict[str, Any] | None:
    """A plan of the target, not written by adapt, with the network and the preprocessing of the pretraining."""
    beside = plans_in(dataset.folder)
    for path in sorted(beside, key=lambda path: (path.stem != source.like_plans, path.stem)):
        plans = beside[path]
        if MARK in plans or source.root not in plans["configurations"]:
            continue
        configuration = resolved(plans, source.root)
        if _matches(plans, configuration, source, dataset):
            return plans
    return None


def _matches(plans: Mapping[str, Any], own: Mapping[str, Any], source: Source, dataset: RawDataset) -> bool:
    theirs = source.configuration
    keys = ("architecture", "normalization_schemes", "use_mask_for_norm")
    if any(own.get(key) != theirs.get(key) for key in keys) or len(dataset.channels) != len(source.channels):
        return False
    if plans["transpose_forward"] != source.plans["transpose_forward"]:
        return False
    if len(own["spacing"]) != len(theirs["spacing"]) or not np.allclose(own["spacing"], theirs["spacing"], rtol=1e-3):
        return False
    names = ("mean", "std", "percentile_00_5", "percentile_99_5")
    return all(
        np.isclose(plans[INTENSITIES][str(i)][key], source.plans[INTENSITIES][str(i)][key], rtol=1e-4)
        for i, scheme in enumerate(own["normalization_schemes"])
        if scheme == "CTNormalization"
        for key in names
    )

"""The plan of one dataset for the images of another, as nnU-Net does it for supervised pretraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.datasets import RawDataset, dataset_name, environment_folder, load_json
from nnunet_ssl.nnunet.planners import full_shape, resolved, stock_plan, take_order
from nnunet_ssl.nnunet.presets import preset_block
from nnunet_ssl.nnunet.settings import DATA_KEYS

COPIED_KEYS = ("patch_size", "batch_size", "architecture", *DATA_KEYS)


def like_plan(
    dataset: RawDataset, plans_name: str, like: int | str, like_plans: str, preset: str = "vox2vec"
) -> tuple[dict[str, Any], list[str]]:
    """The plan of dataset ``like`` for the images of ``dataset``, and notes.

    Architecture, patch, spacing, normalisation and transpose are copied; `preset` says how to pretrain. UserError where
    there is no such plan.
    """
    target = dataset_name(like)
    folder = environment_folder("nnUNet_preprocessed") / target
    source_path = folder / f"{like_plans}.json"
    if not source_path.is_file():
        known = [p.stem for p in sorted(folder.glob("*Plans*.json"))]
        raise UserError(
            f"{target} has no plan {like_plans} (there: {', '.join(known) or 'none'}). Plan it first with "
            f"`nnUNetv2_plan_and_preprocess -d {int(target[7:10])}`, or name another with --like-plans."
        )
    source, source_json = load_json(source_path), load_json(folder / "dataset.json")
    plans = stock_plan(dataset, "ExperimentPlanner", plans_name)
    planned = next(iter(plans["configurations"].values()))
    take_order(plans, source)
    notes = copy_intensities(plans, source, source_json, dataset)
    configurations = {}
    for name in source["configurations"]:
        content = resolved(source, name)
        if content.get("previous_stage") or content.get("ssl", {}).get("pretrained"):
            continue  # a cascade needs labels; what adapt added is not the target's own
        copied = {**deepcopy(planned), **{key: deepcopy(content[key]) for key in COPIED_KEYS}}
        copied |= {"data_identifier": f"{plans_name}_{name}", "batch_dice": content.get("batch_dice", False)}
        copied |= normalisation(planned, content, dataset, source_json)
        copied["median_image_size_in_voxels"] = full_shape(plans, copied, dataset)
        copied["ssl"] = preset_block(preset, name)
        configurations[name] = copied
    plans["configurations"] = configurations
    return plans, notes


def channel_type(channel: str) -> str:
    """The normalisation that nnU-Net gives to a channel of that name."""
    from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

    return str(get_normalization_scheme(channel).__name__)


def matching_channels(wanted: Sequence[str], offered: Sequence[str]) -> list[int | None]:
    """For each wanted channel the index of an offered one.

    Of the same name, else in the same place if of the same type, else the first of that type, else None.
    """
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


def channel_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """Channel names of a dataset.json in order."""
    return list((dataset_json.get("channel_names") or dataset_json.get("modality") or {}).values())


def normalisation(
    planned: Mapping[str, Any], source: Mapping[str, Any], dataset: RawDataset, source_json: Mapping[str, Any]
) -> dict[str, Any]:
    """normalization_schemes and use_mask_for_norm: the source's where channels match, else the planned ones."""
    matches = matching_channels(dataset.channels, channel_names(source_json))
    return {
        key: [planned[key][i] if match is None else source[key][match] for i, match in enumerate(matches)]
        for key in ("normalization_schemes", "use_mask_for_norm")
    }


def copy_intensities(
    plans: dict[str, Any], source: Mapping[str, Any], source_json: Mapping[str, Any], dataset: RawDataset
) -> list[str]:
    """Intensity properties of matching channels, in place; a note for each channel that matches none."""
    notes, key = [], "foreground_intensity_properties_per_channel"
    for index, match in enumerate(matching_channels(dataset.channels, channel_names(source_json))):
        if match is None:
            channel = dataset.channels[index]
            notes.append(f"warning: channel {channel} has no counterpart of its type; it keeps its own normalisation")
        else:
            plans[key][str(index)] = deepcopy(source[key][str(match)])
    return notes

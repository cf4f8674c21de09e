"""Presets: what a JSON file under ``plans/`` says, applied to the plan that nnU-Net's planner made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.files import read_shipped, shipped
from nnunet_ssl.nnunet.memory import total_stride
from nnunet_ssl.nnunet.settings import merge, recipe_class

FOLDER = "nnunet_ssl.plans"
MOST_PAIRS = 16  # where nnU-Net's planner chose the batch: small 2d patches would come by the hundred


def preset_names() -> list[str]:
    """Names of the presets that ship with the package: the JSON files of ``nnunet_ssl.plans``."""
    return shipped(FOLDER)


def load_preset(name: str) -> dict[str, Any]:
    """A preset's values. UserError for an unknown name."""
    if name not in preset_names():
        raise UserError(f'No preset "{name}". There are: {", ".join(preset_names())}.')
    return read_shipped(FOLDER, name)


def preset_block(name: str, configuration: str) -> dict[str, Any]:
    """The ``ssl`` block that a preset gives to a configuration."""
    preset = load_preset(name)
    return merge(preset["ssl"], preset.get("by_configuration", {}).get(configuration, {}).get("ssl", {}))


def topology(spacing: Sequence[float], stages: int) -> tuple[list[list[int]], list[list[int]]]:
    """(kernel sizes, strides) of ``stages`` stages by nnU-Net's rule: an axis is convolved and strided once its spacing
    (mm, of the current stage) is less than twice the finest axis'."""
    current = [float(s) for s in spacing]
    kernels: list[list[int]] = []
    strides = [[1] * len(current)]
    for stage in range(stages):
        near = [s / min(current) < 2 for s in current]
        kernels.append([3 if n else 1 for n in near])
        if stage < stages - 1:
            strides.append([2 if n else 1 for n in near])
            current = [s * step for s, step in zip(current, strides[-1], strict=True)]
    return kernels, strides


def limit_patch(patch: Sequence[int], median_shape: Sequence[float], stride: Sequence[int], part: float) -> list[int]:
    """A pretraining patch (voxels): a multiple of the total stride, and at most `part` of the median image.

    One stride is the least, also where the image is smaller: views are padded there and padding is never sampled.
    """
    limited = []
    for size, extent, step in zip(patch, median_shape, stride, strict=True):
        most = min(float(size), part * float(extent))
        limited.append(max(int(most) // step, 1) * step)
    return limited


def is_ct(channel: str) -> bool:
    """Whether nnU-Net takes a channel of that name for CT."""
    return channel.casefold() == "ct"


def window_normalisation(properties: Mapping[str, Any], window_hu: Sequence[float]) -> dict[str, Any]:
    """Intensity properties with which nnU-Net's CTNormalization maps ``window_hu`` (HU) to [0, 1], clipped outside."""
    low, high = (float(v) for v in window_hu)
    return {**properties, "percentile_00_5": low, "percentile_99_5": high, "mean": low, "std": high - low}


def apply_preset(plans: dict[str, Any], preset: Mapping[str, Any], channels: Sequence[str]) -> list[str]:
    """Write a preset's values into a planner's plan, in place; returns notes for the user.

    What stands under ``by_configuration`` holds for the configuration of that name, over the rest.
    """
    wanted = preset.get("num_channels")
    if wanted is not None and len(channels) != wanted:
        raise UserError(
            f"This preset makes networks with {wanted} input channel, the images have {len(channels)} "
            f"({', '.join(channels)}). Import each channel as images of its own, or use --preset nnunet."
        )
    names = [name for name in preset["configurations"] if name in plans["configurations"]]
    if not names:
        raise UserError("This preset is for 3D images, these are 2D. Use --preset nnunet.")
    plans["configurations"] = {name: plans["configurations"][name] for name in names}
    for name, configuration in plans["configurations"].items():
        _apply_to_configuration(configuration, merge(preset, preset.get("by_configuration", {}).get(name, {})))
    notes = []
    if "window_hu" in preset:
        properties = plans["foreground_intensity_properties_per_channel"]
        for index, channel in enumerate(channels):
            if is_ct(channel):
                properties[str(index)] = window_normalisation(properties[str(index)], preset["window_hu"])
            else:
                notes.append(f"channel {channel} is not CT: nnU-Net's own normalisation instead of the window in HU")
    return notes


def _apply_to_configuration(configuration: dict[str, Any], preset: Mapping[str, Any]) -> None:
    for key in ("patch_size", "batch_size"):
        if key in preset:
            configuration[key] = deepcopy(preset[key])
    if "architecture" in preset:
        architecture = deepcopy(preset["architecture"])
        arguments = architecture["arch_kwargs"]
        if arguments.get("strides") == "by_spacing":
            arguments["kernel_sizes"], arguments["strides"] = topology(configuration["spacing"], arguments["n_stages"])
        configuration["architecture"] = architecture
    configuration["ssl"] = deepcopy(preset["ssl"])


def limit_patches(plans: dict[str, Any]) -> list[str]:
    """Limit patch (:func:`limit_patch`) and pairs of every configuration that has an ``ssl`` block; returns notes."""
    notes = []
    for name, configuration in plans["configurations"].items():
        if "ssl" not in configuration:
            continue
        before, stride = list(configuration["patch_size"]), total_stride(configuration["architecture"])
        median = configuration["median_image_size_in_voxels"]
        configuration["batch_size"] = min(configuration["batch_size"], MOST_PAIRS)
        part = recipe_class(configuration["ssl"]).PATCH_OF_IMAGE
        configuration["patch_size"] = before if part is None else limit_patch(before, median, stride, part)
        shown = [round(v) for v in median]
        if configuration["patch_size"] != before:
            notes.append(
                f"{name}: patch {configuration['patch_size']} instead of {before}, because the median image is {shown} "
                f"voxels and two crops of it have to differ (--set patch_size=... overrides; multiples of {stride})"
            )
        if any(size > extent for size, extent in zip(configuration["patch_size"], median, strict=True)):
            notes.append(f"{name}: the patch is larger than the median image {shown}; views are padded")
    return notes

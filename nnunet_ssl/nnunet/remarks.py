"""What an adapted plan should tell its user: how long prediction will take, and organs that have a left and a right."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from nnunet_ssl.nnunet.datasets import RawDataset
from nnunet_ssl.nnunet.planners import resolved

OTHER_SIDE = {"left": "right", "l": "r"}
STEP = 0.5  # nnU-Net's, of a window
MANY = 64  # forward passes a case that a processor should be spared


def remarks(plans: Mapping[str, Any], name: str, dataset: RawDataset) -> list[str]:
    """Notes on a configuration of ours."""
    configuration = resolved(plans, name)
    sides = pairs_of_sides(dataset.json["labels"])
    notes = [cost_of_prediction(configuration, torch.cuda.is_available())]
    if sides and configuration["ssl"].get("mirror_axes") is None:
        first, second = sides[0]
        order = list(plans["transpose_forward"])[3 - len(configuration["patch_size"]) :]
        kept = [axis for axis, stored in enumerate(order) if stored != 2]
        notes.append(
            f"warning: {first} and {second} are sides of one organ, and nnU-Net mirrors every axis without changing "
            f"labels. Leave the left-right axis out: --set ssl.mirror_axes={kept} where it is the images' last one"
        )
    return notes


def cost_of_prediction(configuration: Mapping[str, Any], gpu: bool) -> str:
    """In forward passes: windows of a case (2d: of a slice) of median size, times mirrorings."""
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    block, patch = configuration["ssl"], tuple(configuration["patch_size"])
    sizes = zip(configuration["median_image_size_in_voxels"], patch, strict=True)
    shape = tuple(max(math.ceil(size), side) for size, side in sizes)
    windows = math.prod(map(len, compute_steps_for_sliding_window(shape, patch, STEP)))
    axes = block.get("mirror_axes")
    mirrorings = 2 ** (len(patch) if axes is None else len(axes))
    what = "case" if len(patch) == 3 else "slice"
    said = f"prediction: {windows} windows x {mirrorings} mirrorings a {what} of median size"
    if gpu or windows * mirrorings < MANY:
        return said
    ways = {"--set ssl.mirror_axes=[]": mirrorings > 1, "--set ssl.amp=bf16": block.get("amp") != "bf16"}
    shorter = [way for way, open_to in ways.items() if open_to]
    return said + (f"; on a CPU shorter with {' '.join(shorter)}" if shorter else "")


def pairs_of_sides(names: Iterable[str]) -> list[tuple[str, str]]:
    """Labels whose names differ in nothing but left and right (left_kidney, right_kidney; lung_l, lung_r)."""
    known = {tuple(re.split(r"[^a-z0-9]+", name.lower())): name for name in names}
    swapped = {words: tuple(OTHER_SIDE.get(word, word) for word in words) for words in known}
    return [(known[words], known[other]) for words, other in swapped.items() if other != words and other in known]

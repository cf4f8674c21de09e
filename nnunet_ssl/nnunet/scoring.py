"""Scores of predicted segmentations on the original grid, subject by subject: hard Dice and surface Dice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_ssl.errors import UserError

Mask = NDArray[np.bool_]


def dice(truth: Mask, guess: Mask) -> float | None:
    """2 |T and G| / (|T| + |G|); None where the reference has no such voxel (the score says nothing then)."""
    if not truth.any():
        return None
    return float(2.0 * np.count_nonzero(truth & guess) / (np.count_nonzero(truth) + np.count_nonzero(guess)))


def surface_dice(truth: Mask, guess: Mask, spacing_mm: Sequence[float], tolerance_mm: float) -> float | None:
    """Share of both surfaces within the tolerance of the other one (Nikolov et al., 2018; also called NSD).

    None where the reference is empty, and where the package ``surface-distance``, which computes it, is missing.
    """
    if not truth.any():
        return None
    try:
        from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances
    except ImportError:
        return None
    if not guess.any():
        return 0.0
    distances = compute_surface_distances(truth, guess, list(spacing_mm))
    value = float(compute_surface_dice_at_tolerance(distances, tolerance_mm))
    return None if math.isnan(value) else value


def classes_of(dataset_json: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> label values of every class to be scored: regions as nnU-Net reads them; not background, not ignore."""
    found = {}
    for name, value in dataset_json["labels"].items():
        values = tuple(value) if isinstance(value, list | tuple) else (value,)
        if name != "ignore" and values != (0,):
            found[name] = values
    return found


def score_folder(
    predictions: str | Path,
    references: str | Path,
    dataset_json: Mapping[str, Any],
    tolerance_mm: float,
    cases: Sequence[str] | None = None,
    grid_mm: Sequence[float] | None = None,
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Case -> class -> {"dice", "nsd"}, for every reference (or those in `cases`).

    ``grid_mm``: not on the original grid but on one of this spacing, see :func:`on_grid`. Raises UserError for a
    missing prediction and for one on another grid than its reference. Voxels with the ignore label do not count.
    """
    ending, classes = dataset_json["file_ending"], classes_of(dataset_json)
    names = (
        sorted(cases)
        if cases is not None
        else sorted(path.name.removesuffix(ending) for path in Path(references).glob(f"*{ending}"))
    )
    if not names:
        raise UserError(f"There are no reference segmentations (*{ending}) in {references}.")
    scores = {}
    for name in names:
        truth, guess = (_read(Path(folder) / f"{name}{ending}") for folder in (references, predictions))
        if truth.GetSize() != guess.GetSize():
            raise UserError(
                f"{name} is {guess.GetSize()} voxels in {predictions} and {truth.GetSize()} in {references}; expected "
                "the same grid."
            )
        if grid_mm is not None:
            guess.CopyInformation(truth)  # headers may differ in the last digits
            truth, guess = on_grid(truth, grid_mm), on_grid(guess, grid_mm)
        scores[name] = _score(truth, guess, classes, dataset_json["labels"].get("ignore"), tolerance_mm)
    return scores


def _score(
    truth: sitk.Image, guess: sitk.Image, classes: Mapping[str, tuple[int, ...]], ignored: int | None, tolerance: float
) -> dict[str, dict[str, float | None]]:
    spacing = truth.GetSpacing()[::-1]
    t, g = sitk.GetArrayFromImage(truth), sitk.GetArrayFromImage(guess)
    if ignored is not None:
        g = np.where(t == ignored, 0, g)
    rows = {}
    for label, values in classes.items():
        masks = np.isin(t, values), np.isin(g, values)
        rows[label] = {"dice": dice(*masks), "nsd": surface_dice(*masks, spacing, tolerance)}
    return rows


DIRECTIONS = ("SI", "AP", "RL")  # of the entries of grid_mm


def on_grid(mask: sitk.Image, grid_mm: Sequence[float]) -> sitk.Image:
    """A mask on another spacing, every new voxel with the label of the old one that holds its centre.

    ``grid_mm``: along the patient's axis from head to feet, from front to back, and from right to left; an axis of the
    image takes the entry of the direction nearest to it. Directions and the outer border of the first voxel stay; an
    axis of n voxels of s mm becomes one of round(n s / grid_mm), at least one. A centre on the border of two old voxels
    takes the one with the higher index (as far as floats tell). Raises UserError for an image that is not 3D.
    """
    if mask.GetDimension() != 3:
        raise UserError(f"A mask has {mask.GetDimension()} axes; a grid of {list(grid_mm)} mm is for 3D images.")
    letters = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(mask.GetDirection())
    entries = [next(i for i, pair in enumerate(DIRECTIONS) if letter in pair) for letter in letters]
    new = [float(grid_mm[entry]) for entry in entries]
    old, size = mask.GetSpacing(), mask.GetSize()
    first = mask.TransformContinuousIndexToPhysicalPoint([(n / o - 1) / 2 for n, o in zip(new, old, strict=True)])
    number = [max(1, round(count * o / n)) for count, o, n in zip(size, old, new, strict=True)]
    return sitk.Resample(mask, number, sitk.Transform(), sitk.sitkNearestNeighbor, first, new, mask.GetDirection(), 0,
                         mask.GetPixelID())  # fmt: skip


def _read(path: Path) -> sitk.Image:
    if not path.is_file():
        raise UserError(f"{path} is missing: expected a segmentation there.")
    return sitk.ReadImage(str(path))

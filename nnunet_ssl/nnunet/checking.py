"""Whether the files of a labelled case can be used, in words, and the hash by which its image is known again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import SimpleITK as sitk

from nnunet_ssl.nnunet.volumes import (
    Unusable,
    check_finite,
    check_same_grid,
    check_values,
    content_hash,
    orientation,
    read_volumes,
)

MOST_VALUES = 5  # wrong label values that are named


@dataclass(frozen=True)
class CaseFiles:
    """One case to be checked: its image, its label file (None where it has none), label value -> class."""

    name: str
    image: str
    label: str | None
    labels: Mapping[int, str]


@dataclass
class Checked:
    """What was found: problems in words (none: it can be used), the image's content hash, where its axes point to."""

    name: str
    problems: list[str] = field(default_factory=list)
    hash: str = ""
    orientation: str = ""


def check_case(files: CaseFiles) -> Checked:
    """Image and label: both whole, on one grid, and no label value but the declared ones. What is not so is listed."""
    found = Checked(files.name)
    image = _read(files.image, found)
    label = _read(files.label, found) if files.label else None
    if image is not None:
        _note(found, files.image, lambda: check_values(sitk.GetArrayViewFromImage(image)))
        found.hash, found.orientation = content_hash(image), orientation(image)
    if label is not None and files.label:
        _note(found, files.label, lambda: _check_labels(label, files.labels))
    if image is not None and label is not None:
        _note(found, files.label or "", lambda: _check_grids(image, label))
    return found


def died(files: CaseFiles) -> Checked:
    """What stands for a case whose check was killed."""
    return Checked(files.name, [f"{files.image}: the process that read it was killed (too large for the memory?)"])


def _read(path: str, found: Checked) -> sitk.Image | None:
    try:
        images = read_volumes([path])
        if len(images) == 1:
            return images[0]
        found.problems.append(f"{path}: {len(images)} volumes in one file, expected one")
    except (Unusable, RuntimeError, MemoryError) as error:
        found.problems.append(f"{path}: {str(error) or 'too large for the memory'}")
    return None


def _note(found: Checked, path: str, check: Callable[[], None]) -> None:
    try:
        check()
    except Unusable as error:
        found.problems.append(f"{path}: {error}")


def _check_labels(label: sitk.Image, labels: Mapping[int, str]) -> None:
    array = sitk.GetArrayViewFromImage(label)
    check_finite(array)
    wrong = [value for value in np.unique(array).tolist() if value not in labels]
    if wrong:
        named = ", ".join(f"{value:g}" for value in wrong[:MOST_VALUES]) + (", ..." if len(wrong) > MOST_VALUES else "")
        declared = ", ".join(f"{value} {name}" for value, name in labels.items())
        raise Unusable(f"label values {named}, expected only {declared}")


def _check_grids(image: sitk.Image, label: sitk.Image) -> None:
    try:
        check_same_grid([image, label])
    except Unusable:
        raise Unusable(f"another grid than its image: {_grid(label)}, the image {_grid(image)}") from None


def _grid(image: sitk.Image) -> str:
    def numbers(values: tuple[float, ...], digits: int) -> str:
        return " x ".join(f"{value:.{digits}f}" for value in values)

    origin = ", ".join(f"{value:.1f}" for value in image.GetOrigin())
    return f"{numbers(image.GetSize(), 0)} voxels of {numbers(image.GetSpacing(), 3)} mm at ({origin}) mm"

"""What a worker of an import does with one case: read, check, hash, mask, link or convert."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_ssl.nnunet.foreground import foreground
from nnunet_ssl.nnunet.volumes import (
    Unusable,
    axial_axis,
    check_same_grid,
    check_values,
    content_hash,
    ending_of,
    orientation,
    read_volumes,
)

LEAST_FOREGROUND = 1e-3  # of the volume: below, there is no body in it
PLAIN_ENDING = ".nii.gz"


@dataclass(frozen=True)
class Task:
    """One case: the files of every channel, and where its images and mask go. ``folder=None``: hash only."""

    name: str
    channels: tuple[tuple[str, ...], ...]
    channel_names: tuple[str, ...]
    folder: str | None
    ending: str = PLAIN_ENDING
    copy: bool = False


@dataclass
class Outcome:
    """What became of a case; ``reason`` says why it was skipped."""

    name: str
    reason: str | None = None
    hashes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def convert(task: Task) -> Outcome:
    """Bring one case into the dataset. A case that cannot be used is an Outcome with a reason, never an exception."""
    outcome = Outcome(task.name)
    try:
        _convert(task, outcome)
    except Unusable as error:
        outcome.reason = str(error)
    except MemoryError:
        outcome.reason = "too large for the memory of this machine"
    except RuntimeError as error:  # ITK while orienting or extracting; writing errors are OSErrors and end the import
        outcome.reason = f"unreadable: {str(error).strip().splitlines()[-1][:200]}"
    if outcome.reason and task.folder is not None:
        remove_case(task)
    return outcome


def _convert(task: Task, outcome: Outcome) -> None:
    images = [image for files in task.channels for image in read_volumes(files)]
    if len(images) != len(task.channel_names):
        raise Unusable(f"wrong number of channels: found {len(images)}, expected {len(task.channel_names)}")
    check_same_grid(images)
    arrays = [sitk.GetArrayViewFromImage(image) for image in images]
    for array in arrays:
        check_values(array)
    outcome.hashes = [content_hash(image) for image in images]
    if task.folder is None:
        return
    first = images[0]
    data = np.stack(arrays) if len(arrays) > 1 else arrays[0][None]
    mask = foreground(data, task.channel_names, first.GetSpacing()[::-1], axial_axis(first))
    if mask.mean() < LEAST_FOREGROUND:
        raise Unusable("no body: " + ("air, or a table alone" if _has_ct(task) else "no foreground found"))
    outcome.facts = {
        "shape": list(first.GetSize()[::-1]),
        "spacing_mm": [round(s, 6) for s in first.GetSpacing()[::-1]],
        "orientation": orientation(first),
        "foreground": round(float(mask.mean()), 4),
    }
    outcome.warnings = _warnings(task, arrays, mask)
    _write(task, images, mask)


def _has_ct(task: Task) -> bool:
    return any(name.casefold() == "ct" for name in task.channel_names)


def _warnings(task: Task, arrays: list[Any], mask: Any) -> list[str]:
    found = []
    for name, array in zip(task.channel_names, arrays, strict=True):
        if name.casefold() == "ct" and float(array.min()) >= 0:
            found.append(f"no value below 0 ({array.min():g} to {array.max():g}): are these Hounsfield units?")
    return found


def _write(task: Task, images: list[sitk.Image], mask: Any) -> None:
    for channel, image in enumerate(images):
        target = _image_path(task, channel)
        files = task.channels[channel] if channel < len(task.channels) else ()
        whole = len(task.channels) == len(images) and len(files) == 1 and ending_of(files[0]) == task.ending
        if whole and _dimension(files[0]) == 3:
            _link(files[0], target, task.copy)
        else:
            _write_image(image, target)
    label = sitk.GetImageFromArray(mask.astype(np.uint8))
    label.CopyInformation(images[0])
    _write_image(label, _label_path(task))


def _dimension(path: str) -> int:
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.ReadImageInformation()
    return int(reader.GetDimension())


def _write_image(image: sitk.Image, path: Path) -> None:
    for key in image.GetMetaDataKeys():  # DICOM tags name the patient
        image.EraseMetaData(key)
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise OSError(f"cannot write {path.name} into the dataset: {str(error).strip().splitlines()[-1]}") from error


def _link(source: str, target: Path, copy: bool) -> None:
    if copy:
        shutil.copyfile(source, target)
        return
    try:
        target.symlink_to(os.path.realpath(source))
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def reencode(path: str) -> str:
    """Rewrite an image as .nii.gz under the same name (nnU-Net's reorienting reader reads nothing else)."""
    source = Path(path)
    target = source.with_name(source.name[: -len(ending_of(source.name))] + PLAIN_ENDING)
    _write_image(sitk.ReadImage(path), target)
    source.unlink()
    return str(target)


def _image_path(task: Task, channel: int) -> Path:
    return Path(task.folder or ".") / "imagesTr" / f"{task.name}_{channel:04d}{task.ending}"


def _label_path(task: Task) -> Path:
    return Path(task.folder or ".") / "labelsTr" / f"{task.name}{task.ending}"


def remove_case(task: Task) -> None:
    """Take the images and the mask of one case out of the dataset."""
    for path in [_label_path(task), *(_image_path(task, c) for c in range(len(task.channel_names)))]:
        path.unlink(missing_ok=True)

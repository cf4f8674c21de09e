"""Miniatures of the public downloads, in their exact layouts: every name, a few voxels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_ssl.bench.task import Task, load_task

SHAPE = (6, 9, 11)  # z, y, x
GROUPS = ("DCM", "HCM", "MINF", "NOR", "RV")


def save(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.5, 1.5, 5.0)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin((-20.0, 10.0, 3.0))
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, SHAPE).astype(np.int16)


def label(task: Task) -> np.ndarray:
    """All the values of a task, a voxel or more each."""
    array = np.zeros(SHAPE, np.uint8)
    array.flat[: len(task.labels)] = list(task.labels.values())
    return array


def btcv(folder: Path) -> Path:
    task, number = load_task("BTCV"), 0
    for test, part in ((False, "Training"), (True, "Testing")):
        for name in task.subjects(test):
            number += 1
            save(folder / "RawData" / part / "img" / f"{name}.nii.gz", image(number))
            if not test:
                save(folder / "RawData" / part / "label" / f"{name.replace('img', 'label')}.nii.gz", label(task))
    return folder


def msd(folder: Path, task_name: str = "Task09_Spleen") -> Path:
    task = load_task(task_name)
    root, stem = folder / task.name, task.short_name.lower()
    names = [f"{stem}_{number + 2}" for number in range(task.training + task.test)]
    training, tests = names[: task.training], names[task.training :]
    for number, name in enumerate(names):
        save(root / ("imagesTs" if name in tests else "imagesTr") / f"{name}.nii.gz", image(number))
        if name not in tests:
            save(root / "labelsTr" / f"{name}.nii.gz", label(task))
    (root / "imagesTr" / "._spleen_2.nii.gz").write_bytes(b"a Mac's")
    (root / "dataset.json").write_text(json.dumps({
        "name": task.short_name, "description": "d", "reference": "r", "licence": "CC-BY-SA 4.0", "release": "1.0",
        "tensorImageSize": "3D", "modality": {"0": task.channels[0]},
        "labels": {"0": "background", **{str(value): f"their {name}" for name, value in task.labels.items() if value}},
        "numTraining": len(training), "numTest": len(tests),
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in training],
        "test": [f"./imagesTs/{name}.nii.gz" for name in tests],
    }))  # fmt: skip
    return root


def acdc(folder: Path) -> Path:
    task, number = load_task("ACDC"), 0
    for test, part in ((False, "training"), (True, "testing")):
        for index, patient in enumerate(task.subjects(test)):
            home = folder / "database" / part / patient
            first, last = (4, 11) if patient == "patient090" else (1, 10)
            for frame in (first, last):
                number += 1
                save(home / f"{patient}_frame{frame:02d}.nii.gz", image(number))
                save(home / f"{patient}_frame{frame:02d}_gt.nii.gz", label(task))
            (home / f"{patient}_4d.nii.gz").write_bytes(b"not read")
            group = GROUPS[index * len(GROUPS) // len(task.subjects(test))]
            (home / "Info.cfg").write_text(
                f"ED: {first}\nES: {last}\nGroup: {group}\nHeight: 170.0\nNbFrame: 25\nWeight: 70.0"
            )
    return folder / "database"


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target

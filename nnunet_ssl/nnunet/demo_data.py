"""The demo's phantoms as files, and pictures of what was predicted for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnunet_ssl.nnunet.files import replacing, write_json
from nnunet_ssl.phantom import make_case, organ_names

ORGANS = 4
COLOURS = ((0.90, 0.35, 0.24), (0.20, 0.63, 0.86), (0.97, 0.77, 0.19), (0.36, 0.74, 0.41), (0.62, 0.40, 0.82),
           (0.95, 0.56, 0.72))  # fmt: skip
WINDOW_HU = (-160.0, 240.0)


def write_phantoms(
    scans: Path, raw: Path, unlabelled: int, labelled: int, tests: int, organs: int = ORGANS
) -> dict[str, str]:
    """Phantom CTs: ``unlabelled`` plain files in ``scans``, and a raw dataset ``raw`` with training and test cases.

    Subjects of all three are drawn apart. Returns label -> name of the organs.
    """
    for folder in (scans, *(raw / name for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"))):
        folder.mkdir(parents=True, exist_ok=True)
    for number in range(unlabelled):
        image, _, spacing = make_case(np.random.default_rng([1, number]), organs=organs)
        write_image(scans / f"scan_{number:03d}.nii.gz", image.astype(np.int16), spacing)
    for part, count, seed in (("Tr", labelled, 2), ("Ts", tests, 3)):
        for number in range(count):
            image, labels, spacing = make_case(np.random.default_rng([seed, number]), organs=organs)
            case = f"{'train' if part == 'Tr' else 'test'}_{number:03d}"
            write_image(raw / f"images{part}" / f"{case}_0000.nii.gz", image.astype(np.int16), spacing)
            write_image(raw / f"labels{part}" / f"{case}.nii.gz", labels, spacing)
    names = organ_names(organs)
    write_json(raw / "dataset.json", {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{name: number for number, name in enumerate(names, start=1)}},
        "numTraining": labelled,
        "file_ending": ".nii.gz",
    })  # fmt: skip
    return {str(number): name.replace("_", " ") for number, name in enumerate(names, start=1)}


def write_image(path: Path, array: NDArray[np.generic], spacing: Sequence[float]) -> None:
    """Write (z, y, x) with its spacing (z, y, x) in mm."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in reversed(spacing)])
    sitk.WriteImage(image, str(path))


def draw_predictions(
    target: Path, images: Path, labels: Path, predictions: Mapping[str, Path], subjects: int = 2
) -> Path:
    """A PNG with a row a test subject: the image, the true labels, and the labels in each folder of ``predictions``."""
    cases = sorted(path.name.removesuffix(".nii.gz") for path in labels.glob("*.nii.gz"))[:subjects]
    columns = ["image", "true labels", *predictions]
    figure = Figure(figsize=(2.1 * len(columns), 2.2 * len(cases) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(cases), len(columns), squeeze=False)
    for row, case in enumerate(cases):
        image, truth = _read(images / f"{case}_0000.nii.gz"), _read(labels / f"{case}.nii.gz")
        shown = [None, truth, *(_read(folder / f"{case}.nii.gz") for folder in predictions.values())]
        plane = int(np.argmax((truth > 0).sum((1, 2)) + (truth > 1).sum((1, 2))))
        for column, (name, mask) in enumerate(zip(columns, shown, strict=True)):
            axis = axes[row][column]
            axis.imshow(coloured(image[plane], None if mask is None else mask[plane]), interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(name, fontsize=9)
    with replacing(target) as beside:
        figure.savefig(beside, dpi=110)
    return target


def coloured(image_hu: NDArray[np.float32], labels: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """An axial plane (y, x) in grey, (y, x, 3) in [0, 1], with its labels laid over in colour."""
    low, high = WINDOW_HU
    picture = np.repeat(np.clip((image_hu - low) / (high - low), 0, 1)[..., None], 3, axis=-1)
    for number, colour in enumerate(COLOURS, start=1):
        if labels is not None:
            picture[labels == number] = 0.35 * picture[labels == number] + 0.65 * np.asarray(colour)
    return picture.astype(np.float32)


def _read(path: Path) -> NDArray[np.float32]:
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), np.float32)

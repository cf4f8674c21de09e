"""Write phantoms as files: a labelled nnU-Net raw dataset, or a folder of unlabelled scans for `nnunet_ssl import`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_ssl.nnunet.files import write_json
from nnunet_ssl.phantom import make_case, organ_names

ENDING = ".nii.gz"


def write_dataset(folder: str | os.PathLike[str], n: int, modality: str = "CT", seed: int = 0, labelled: bool = True,
                  shape: Sequence[int] = (48, 64, 64), organs: int = 4, num_test: int = 0) -> list[str]:
    """Write ``n`` subjects (and ``num_test`` further ones) that depend on the seed and their number only.

    :param folder: labelled: the raw dataset's own folder (``.../Dataset004_Phantom``), which gets imagesTr, labelsTr,
        dataset.json and, with ``num_test``, imagesTs and labelsTs. Unlabelled: CASE.nii.gz, right in it.
    :param shape: (z, y, x) in voxels.
    :return: the case names; the test cases come last.
    """
    folder = Path(folder)
    names = [f"phantom_{index:03d}" for index in range(n + num_test)]
    for index, name in enumerate(names):
        image, labels, spacing = make_case(np.random.default_rng([seed, index]), modality, shape, organs)
        part = "Tr" if index < n else "Ts"
        stored = image.astype(np.int16) if modality == "CT" else image
        if labelled:
            _write(stored, spacing, folder / f"images{part}" / f"{name}_0000{ENDING}")
            _write(labels, spacing, folder / f"labels{part}" / f"{name}{ENDING}")
        else:
            _write(stored, spacing, folder / f"{name}{ENDING}")
    if labelled:
        write_json(folder / "dataset.json", {
            "channel_names": {"0": "CT" if modality == "CT" else "MRI"},
            "labels": {"background": 0} | {organ: i for i, organ in enumerate(organ_names(organs), start=1)},
            "numTraining": n,
            "file_ending": ENDING,
        })
    return names


def _write(array: NDArray[np.generic], spacing: Sequence[float], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in spacing[::-1]])
    sitk.WriteImage(image, str(path), useCompression=True)

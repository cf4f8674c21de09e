"""The raw images of a preprocessed dataset, brought onto the preprocessed grid."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RawImages:
    """Reads the images of cases in raw units, axes in the plan's order."""

    files: Mapping[str, Sequence[str]]  # one file a channel, by case
    reader: type[Any]
    transpose: Sequence[int]

    def __contains__(self, case: str) -> bool:
        return case in self.files and all(os.path.exists(path) for path in self.files[case])

    def read(self, case: str) -> tuple[NDArray[np.float32], list[float]]:
        """(C, z, y, x) in raw units and the spacing in mm."""
        image, properties = self.reader().read_images(self.files[case])
        axes = [0, *(axis + 1 for axis in self.transpose)]
        return np.asarray(image).transpose(axes), [float(properties["spacing"][axis]) for axis in self.transpose]


def raw_images(plans_manager: Any, dataset_json: dict[str, Any]) -> RawImages | None:
    """The raw images behind a plan's dataset; None where nnUNet_raw does not hold it."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    folder = Path(os.environ.get("nnUNet_raw", "")) / plans_manager.dataset_name
    if not os.environ.get("nnUNet_raw") or not (folder / "imagesTr").is_dir():
        return None
    found = get_filenames_of_train_images_and_targets(str(folder), dataset_json)
    files = {case: list(content["images"]) for case, content in found.items()}
    return RawImages(files, plans_manager.image_reader_writer_class, tuple(plans_manager.transpose_forward))


def on_preprocessed_grid(mask: NDArray[np.bool_], folder: str | Path, case: str,
                         shape: Sequence[int]) -> NDArray[np.bool_]:  # fmt: skip
    """A mask of the raw image (axes in the plan's order) -> the same on the preprocessed image's grid, nearest voxel.

    The crop to nonzero voxels that nnU-Net made first is read from the case's properties.
    """
    with open(Path(folder) / f"{case}.pkl", "rb") as stream:  # nnU-Net's own file, which its data loader reads too
        box = pickle.load(stream)["bbox_used_for_cropping"]
    cropped = mask[tuple(slice(int(low), int(high)) for low, high in box)]
    index = [np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
             for new, old in zip(shape, cropped.shape, strict=True)]  # fmt: skip
    return cropped[np.ix_(*index)]

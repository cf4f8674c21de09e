"""Foreground masks for datasets whose segmentations are labels: computed from the image, cached beside it.

A dataset made by ``nnunet_ssl import`` carries its mask as the label (``ssl_foreground`` in dataset.json). Pretraining
on any other dataset must not look at labels; there the mask of a case is made once from its image, kept as
``<case>_ssl_foreground.npy`` (preprocessing anew deletes the folder and with it the masks). The preprocessed image will
do where the plan's window leaves air apart from fat. A plan whose intensities were taken from organs clips both to one
value; then the raw image is read, and where that is missing the whole image is foreground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ssl.nnunet.files import replacing
from nnunet_ssl.nnunet.foreground import AIR_HU, foreground
from nnunet_ssl.nnunet.raw_images import RawImages, on_preprocessed_grid, raw_images

CT_SCHEME = "CTNormalization"
SUFFIX = "_ssl_foreground.npy"


@dataclass(frozen=True)
class ForegroundMasks:
    """Callable (folder, case) -> path of the case's mask, made where it is missing; by several processes if need be."""

    is_ct: Sequence[bool]  # one a channel
    mean: Sequence[float]  # HU = normalised * std + mean, for the CT channels
    std: Sequence[float]
    spacing: Sequence[float]  # mm (z, y, x), as stored
    axial_axis: int = 0  # of the stored array
    clipped: bool = False  # the plan's window cuts fat off: the stored image does not show the body
    raw: RawImages | None = None

    def __call__(self, folder: str, case: str) -> Path:
        path = Path(folder) / f"{case}{SUFFIX}"
        if not path.is_file():
            mask = self._of_raw(folder, case) if self.clipped else self.compute(_whole_image(folder, case))
            with replacing(path) as beside:
                np.save(beside, mask)
        return path

    def compute(self, image: NDArray[np.float32]) -> NDArray[np.bool_]:
        """(C, z, y, x) in the plan's normalised units -> (z, y, x) bool."""
        channels = zip(image, self.is_ct, self.mean, self.std, strict=True)
        values = np.stack([x * std + mean if ct else x for x, ct, mean, std in channels])
        return self._foreground(values, self.spacing)

    def describe(self) -> str:
        """Where the masks come from, for the log."""
        if not self.clipped:
            return "foreground masks are computed from the preprocessed images"
        where = f"the plan's window starts above {AIR_HU:g} HU and shows no fat"
        if self.raw is not None:
            return f"{where}: foreground masks are computed from the raw images"
        return f"{where}, and nnUNet_raw does not hold the dataset: all of an image is foreground"

    def _foreground(self, values: NDArray[np.generic], spacing: Sequence[float]) -> NDArray[np.bool_]:
        names = ["CT" if ct else "other" for ct in self.is_ct]
        return np.asarray(foreground(values, names, list(spacing), self.axial_axis), dtype=bool)

    def _of_raw(self, folder: str, case: str) -> NDArray[np.bool_]:
        shape = _stored_image(folder, case).shape[1:]  # nothing of it is decompressed
        if self.raw is None or case not in self.raw:
            return np.ones(tuple(shape), dtype=bool)
        image, spacing = self.raw.read(case)
        return on_preprocessed_grid(self._foreground(image, spacing), folder, case, shape)


def mask_maker(plans_manager: Any, configuration_manager: Any, dataset_json: dict[str, Any]) -> ForegroundMasks | None:
    """None where the segmentations are foreground masks, otherwise what makes masks from the images."""
    if dataset_json.get("ssl_foreground", False):
        return None
    schemes = configuration_manager.normalization_schemes
    properties = plans_manager.foreground_intensity_properties_per_channel
    rows = [properties.get(str(c), {}) for c in range(len(schemes))]
    spacing = [float(s) for s in configuration_manager.spacing]
    is_ct = tuple(scheme == CT_SCHEME for scheme in schemes)
    clipped = any(ct and float(row["percentile_00_5"]) > AIR_HU for ct, row in zip(is_ct, rows, strict=True))
    if len(spacing) == 2:  # slices: the distance between them is the dataset's
        spacing = [float(plans_manager.original_median_spacing_after_transp[0]), *spacing]
    return ForegroundMasks(
        is_ct=is_ct,
        mean=tuple(float(row.get("mean", 0.0)) for row in rows),
        std=tuple(float(row.get("std", 1.0)) for row in rows),
        spacing=tuple(spacing),
        axial_axis=list(plans_manager.transpose_forward).index(0),
        clipped=clipped,
        raw=raw_images(plans_manager, dataset_json) if clipped else None,
    )


def _stored_image(folder: str, case: str) -> Any:
    from nnunet_ssl.nnunet.b2nd import open_b2nd

    return open_b2nd(Path(folder) / f"{case}.b2nd")


def _whole_image(folder: str, case: str) -> NDArray[np.float32]:
    return np.asarray(_stored_image(folder, case)[:], dtype=np.float32)

"""Read a scan whatever its file format, say why it cannot be used, and hash what it shows.

SimpleITK images are indexed (x, y, z); arrays taken from them are (z, y, x). The module is light, because
every worker process of an import loads it.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".hdr", ".img.gz")
NIFTI2 = ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))  # the header's size; 348 in NIfTI 1
SPACING_DIGITS = 1e-3  # mm; differences below are a format's rounding


class Unusable(Exception):
    """This scan cannot be imported; the message is the reason, shown to the user."""


def ending_of(path: str) -> str:
    """The ending in ENDINGS that a file name has, '' if none."""
    return next((e for e in ENDINGS if path.lower().endswith(e)), "")


def read_volumes(files: Sequence[str]) -> list[sitk.Image]:
    """The scalar 3D images of one file, or the one of a sorted DICOM series.

    A 4D file whose last axis is short holds channels and gives one image each; a fourth axis of length 1 is dropped.
    :raises Unusable: unreadable, empty, 2D, or vector-valued.
    """
    if os.path.isfile(files[0]) and os.path.getsize(files[0]) == 0:
        raise Unusable("empty: the file has 0 bytes")
    if files[0].lower().endswith((".nii", ".nii.gz")):
        check_nifti(files[0])
    try:
        image = sitk.ReadImage(list(files) if len(files) > 1 else files[0])
    except Exception as error:  # SimpleITK raises RuntimeError, GDCM's wrappers others
        raise Unusable(f"unreadable: {_last_line(error)}") from error
    if image.GetNumberOfPixels() == 0:
        raise Unusable(f"empty: {'x'.join(map(str, image.GetSize()))} voxels")
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise Unusable(f"{image.GetNumberOfComponentsPerPixel()} values a voxel (colour or vectors), expected one")
    if image.GetDimension() == 4:
        size = list(image.GetSize())
        return [_checked_3d(sitk.Extract(image, [*size[:3], 0], [0, 0, 0, t])) for t in range(size[3])]
    return [_checked_3d(image)]


def check_nifti(path: str) -> None:
    """Raise Unusable for what ITK's NIfTI reader hides: it fills the missing end of a file, and NaN, with zeros."""
    try:
        content = Path(path).read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)  # also compares the checksum
        kind = nibabel.Nifti2Image if content[:4] in NIFTI2 else nibabel.Nifti1Image
        stored = kind.from_bytes(content).dataobj.get_unscaled()
    except MemoryError:
        raise
    except Exception as error:  # damage shows as anything from EOFError to nibabel's WrapStructError
        raise Unusable(f"unreadable: {_last_line(error)}") from error
    if np.issubdtype(stored.dtype, np.inexact):
        check_finite(stored)


def damage(case: tuple[str, Sequence[str]]) -> str | None:
    """What is wrong with the files of a case (its name, one file a channel), in words; None where nothing shows.

    Nothing is decoded but NIfTI, whose damage no reader reports.
    """
    name, files = case
    for path in files:
        try:
            if not os.path.isfile(path) or os.path.getsize(path) == 0:
                raise Unusable("missing" if not os.path.isfile(path) else "empty: the file has 0 bytes")
            if path.lower().endswith((".nii", ".nii.gz")):
                check_nifti(path)
        except Unusable as problem:
            return f"{name}: {path} is {problem}"
    return None


def _checked_3d(image: sitk.Image) -> sitk.Image:
    size = image.GetSize()
    if image.GetDimension() != 3 or min(size) < 2:
        raise Unusable(f"2D: {'x'.join(map(str, size))} voxels, expected a volume")
    if "complex" in image.GetPixelIDTypeAsString():
        raise Unusable("complex values, expected real ones")
    return image


def check_values(array: NDArray[np.generic]) -> None:
    """Raise Unusable for a volume that is constant, or holds NaN or infinity."""
    check_finite(array)
    lowest, highest = array.min(), array.max()
    if lowest == highest:
        raise Unusable(f"constant: every voxel is {lowest:g}")


def check_finite(array: NDArray[np.generic]) -> None:
    """Raise Unusable for NaN or infinity."""
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):
        number = int(array.size - np.count_nonzero(np.isfinite(array)))
        raise Unusable(f"non-finite: NaN or infinity in {number} of {array.size} voxels")


def check_same_grid(images: Sequence[sitk.Image]) -> None:
    """Raise Unusable unless all channels of a case lie on one grid."""
    first = images[0]
    for number, image in enumerate(images[1:], start=1):
        if image.GetSize() != first.GetSize():
            raise Unusable(f"channels differ in size: {first.GetSize()} and {image.GetSize()} (channel {number})")
        same = (
            np.allclose(image.GetSpacing(), first.GetSpacing(), atol=SPACING_DIGITS)
            and np.allclose(image.GetOrigin(), first.GetOrigin(), atol=0.1)
            and np.allclose(image.GetDirection(), first.GetDirection(), atol=1e-3)
        )
        if not same:
            raise Unusable(f"channels lie on different grids (spacing, origin or direction of channel {number})")


def orientation(image: sitk.Image) -> str:
    """Where the axes x, y, z of the file point to, e.g. ``LPS`` for an ordinary axial DICOM series."""
    return str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection()))


def axial_axis(image: sitk.Image) -> int:
    """The array axis (0, 1, 2 of z, y, x) that runs between feet and head."""
    superior = np.abs(np.asarray(image.GetDirection()).reshape(3, 3)[2])
    return 2 - int(superior.argmax())


def content_hash(image: sitk.Image) -> str:
    """sha256 of what a volume shows, independent of file format, data type and axis order.

    Hashed are, with the axes turned to RAS: shape (x, y, z), spacing in whole um, voxels as little-endian float32
    with x running fastest. A resampled, cropped or rescaled copy has another hash.
    """
    image = sitk.DICOMOrient(image, "RAS")
    digest = hashlib.sha256()
    digest.update(np.asarray(image.GetSize(), "<i8").tobytes())
    digest.update(np.rint(np.asarray(image.GetSpacing()) / SPACING_DIGITS).astype("<i8").tobytes())
    for plane in sitk.GetArrayViewFromImage(image):
        digest.update(np.ascontiguousarray(plane, "<f4").tobytes())
    return digest.hexdigest()


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__

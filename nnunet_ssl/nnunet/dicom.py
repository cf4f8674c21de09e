"""Group the DICOM files of a folder into series, and refuse those that are no regular volume.

ITK stacks slices at even distances along the slice normal whatever their positions say: a series with a missing slice
or a tilted gantry would be imported warped. Positions and orientations are checked here, before anything is stacked.
Those of an enhanced (multi-frame) file lie in sequences that SimpleITK does not show, so these files are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

SERIES, MODALITY, FRAMES = "0020|000e", "0008|0060", "0028|0008"
POSITION, ORIENTATION = "0020|0032", "0020|0037"
NO_SCANS = ("RTDOSE", "RTSTRUCT", "RTPLAN", "RTRECORD", "SEG", "SR", "PR", "KO", "REG")
UNEVEN = 0.02  # of the slice distance; scanners round positions to 0.01 mm or so
TILT_DEG = 0.5


@dataclass(frozen=True)
class Series:
    """Files of one series in order along the slice normal; ``problem`` says why it cannot be a volume."""

    uid: str
    files: tuple[str, ...]
    problem: str | None = None


@dataclass(frozen=True)
class _Slice:
    path: str
    uid: str
    modality: str
    size: tuple[int, ...]
    frames: int
    position: NDArray[np.float64] | None
    orientation: NDArray[np.float64] | None


def looks_like_dicom(path: Path) -> bool:
    """By its ending, or by the marker behind the preamble; files without either are no DICOM that is worth a try."""
    if path.suffix.lower() in (".dcm", ".ima", ".dicom"):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def series_of(files: Sequence[str]) -> list[Series]:
    """Sort DICOM files into series by their UID, each checked. Files that hold no image are series of their own."""
    found: dict[str, list[_Slice]] = {}
    broken: list[Series] = []
    for path in sorted(files):
        try:
            header = _header(path)
        except (RuntimeError, ValueError):
            broken.append(Series(path, (path,), "unreadable: no DICOM image (a report, a structure set, or damaged)"))
            continue
        found.setdefault(header.uid, []).append(header)
    return [_checked(uid, slices) for uid, slices in found.items()] + broken


def _header(path: str) -> _Slice:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(path)
    reader.ReadImageInformation()
    tags = {tag: reader.GetMetaData(tag).strip() for tag in (SERIES, MODALITY, FRAMES, POSITION, ORIENTATION)
            if reader.HasMetaDataKey(tag)}
    return _Slice(
        path, tags.get(SERIES, ""), tags.get(MODALITY, ""), tuple(reader.GetSize()[:2]),
        int(tags.get(FRAMES) or 1), _numbers(tags.get(POSITION), 3), _numbers(tags.get(ORIENTATION), 6),
    )


def _numbers(text: str | None, count: int) -> NDArray[np.float64] | None:
    try:
        values = np.asarray([float(part) for part in (text or "").split("\\")])
    except ValueError:
        return None
    return values if values.size == count else None


def _checked(uid: str, slices: list[_Slice]) -> Series:
    files = tuple(s.path for s in slices)
    first = slices[0]
    if first.modality in NO_SCANS:
        return Series(uid, files, f"DICOM modality {first.modality} is not a scan")
    if any(s.frames > 1 for s in slices):
        return Series(uid, files, "enhanced (multi-frame) DICOM: where its frames lie cannot be checked; convert it to "
                      "NIfTI first, e.g. with dcm2niix")  # fmt: skip
    if len(slices) == 1:
        return Series(uid, files, "2D: a DICOM series of one slice")
    if len({s.size for s in slices}) > 1:
        return Series(uid, files, "slices of different sizes in one DICOM series")
    if any(s.position is None or s.orientation is None for s in slices):
        return Series(uid, files, "DICOM slices without position or orientation")
    orientations = np.stack([s.orientation for s in slices if s.orientation is not None])
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        return Series(uid, files, "slices of different orientations in one DICOM series (a localizer?)")
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    positions = np.stack([s.position for s in slices if s.position is not None])
    order = np.argsort(positions @ normal, kind="stable")
    return Series(uid, tuple(files[i] for i in order), _stacking_problem(positions[order], normal))


def _stacking_problem(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> str | None:
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    if gaps.min() <= 1e-3:
        return "several slices at one position: more than one volume in a DICOM series"
    if np.abs(gaps - usual).max() > max(UNEVEN * usual, 0.02):
        return f"uneven slices: {gaps.min():.2f} to {gaps.max():.2f} mm apart (a slice is missing?)"
    way = positions[-1] - positions[0]
    angle = np.degrees(np.arccos(np.clip(way @ normal / np.linalg.norm(way), -1.0, 1.0)))
    return f"gantry tilt of {angle:.1f} degrees: slices are sheared" if angle > TILT_DEG else None

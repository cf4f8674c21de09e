"""Preprocessed cases (nnU-Net's .b2nd files), read box by box."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ssl.anchors import count_slices
from nnunet_ssl.errors import UserError

PREPROCESS_AGAIN = "Preprocess the dataset again: `nnunet_ssl plan ... --preprocess`."

MaskMaker = Callable[[str, str], Path]
"""(folder, case) -> .npy file with the foreground mask (*S) of a volume whose segmentation must not be read."""


class B2ndVolume:
    """One preprocessed case, read partially: image boxes (C, *size) and foreground boxes (*size), never the whole."""

    def __init__(self, folder: str, case: str, mask_maker: MaskMaker | None = None) -> None:
        self.case = case
        self._path = Path(folder) / f"{case}.b2nd"
        self._image = open_b2nd(self._path)
        if mask_maker is None:
            self._mask = open_b2nd(Path(folder) / f"{case}_seg.b2nd")
        else:
            self._mask = np.load(mask_maker(folder, case), mmap_mode="r")[None]
        if tuple(self._mask.shape[1:]) != self.shape:
            shapes = f"image {self.shape} and mask {tuple(self._mask.shape[1:])}"
            raise UserError(f"{self._path}: {shapes} differ in shape. Preprocess the dataset again.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape in voxels (z, y, x)."""
        return tuple(int(n) for n in self._image.shape[1:])

    @property
    def num_channels(self) -> int:
        return int(self._image.shape[0])

    def image(self, start: Sequence[int], size: Sequence[int]) -> NDArray[np.float32]:
        """(C, *size) of a box that lies inside the volume."""
        box = self._read(self._image, start, size)
        if not np.isfinite(box).all():
            raise UserError(
                f"{self._path} holds NaN or infinite values at voxel {[int(s) for s in start]}. Remove the case "
                f"{self.case} from the dataset (nnunet_ssl import skips such volumes) and preprocess again."
            )
        return box

    def mask(self, start: Sequence[int], size: Sequence[int]) -> NDArray[np.bool_]:
        """(*size) bool, whether a voxel is foreground; nnU-Net marks voxels outside its nonzero region with -1."""
        return self._read(self._mask, start, size)[0] > 0

    @cached_property
    def mask_counts(self) -> NDArray[np.int64]:
        """(z,) foreground voxels of every slice: what drawing from a sparse mask needs of the whole of it."""
        return count_slices(self.shape, self.mask)

    def _read(self, array: Any, start: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
        box = tuple(slice(int(s), int(s) + int(n)) for s, n in zip(start, size, strict=True))
        try:
            return np.asarray(array[(slice(None), *box)])
        except RuntimeError as error:
            raise UserError(_damaged(self._path)) from error


def open_b2nd(path: Path) -> Any:
    """A preprocessed array, opened for reading parts of it. Raises UserError where it is missing or damaged."""
    import blosc2

    blosc2.set_nthreads(1)
    mmap = {} if os.name == "nt" else {"mmap_mode": "r"}  # as nnU-Net does
    try:
        return blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, **mmap)
    except FileNotFoundError:
        raise UserError(f"{path} is missing. {PREPROCESS_AGAIN}") from None
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(_damaged(path)) from error


def _damaged(path: Path) -> str:
    why = "it is damaged or truncated (was preprocessing interrupted, the disk full?)"
    return f"{path} cannot be read: {why}. {PREPROCESS_AGAIN}"

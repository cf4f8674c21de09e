"""A labelled dataset whose segmentations carry the body as a second channel, for the paper's loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MaskMaker = Callable[[str, str], Path]


class SegmentationWithBody:
    """(2, z, y, x), read by slices: labels and body mask (1 inside). nnU-Net pads outside the volume with -1."""

    def __init__(self, segmentation: Any, body: NDArray[np.bool_]) -> None:
        self.segmentation, self.body = segmentation, body
        self.shape = (2, *body.shape)
        self.dtype = np.dtype(np.int16)

    def __getitem__(self, index: tuple[slice, ...]) -> NDArray[np.int16]:
        box = (slice(0, 1), *index[1:])
        labels = np.asarray(self.segmentation[box])
        return np.concatenate([labels.astype(np.int16), self.body[index[1:]][None].astype(np.int16)])


class DatasetWithBody:
    """What nnU-Net's loader needs of a dataset: ``identifiers`` and ``load_case``."""

    def __init__(self, dataset: Any, make_mask: MaskMaker) -> None:
        self.dataset, self.make_mask = dataset, make_mask
        self.identifiers = dataset.identifiers

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        data, segmentation, previous, properties = self.dataset.load_case(identifier)
        body = np.load(self.make_mask(self.dataset.source_folder, identifier), mmap_mode="r")
        return data, SegmentationWithBody(segmentation, body), previous, properties

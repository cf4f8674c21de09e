"""Pictures of what a network tells apart: three principal components of its voxel vectors as red, green, blue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.nnunet.pca import fit_components
from nnunet_ssl.nnunet.pictures import PLANES, draw_grid, plane, values_at
from nnunet_ssl.nnunet.subjects import Subject

FIT_POINTS = 20_000  # voxels for the principal components
NOTE = "three principal components of the voxel vectors as red, green, blue; all levels, then each level (0 finest)"


class Components:
    """One picture a subject: three planes, the image beside its colours; background is black.

    The components are fitted to all subjects together: the same colour means the same feature in all of them.
    channels: widths of the levels.
    """

    def __init__(self, subjects: Sequence[Subject], channels: Sequence[int]) -> None:
        self.subjects, self.channels = subjects, list(channels)
        self.planes = [[plane(s.mask.shape, axis, s.centre()[axis], s.spacing) for axis in range(3)] for s in subjects]
        points = [np.concatenate([p.points for p in three]) for three in self.planes]
        self.inside = [s.mask[tuple(where.T)] for s, where in zip(subjects, points, strict=True)]
        # the background is not read: it costs most of the windows of a CT and is not shown
        self.points = [where[mask] for where, mask in zip(points, self.inside, strict=True)]
        self.columns: list[tuple[str, list[np.ndarray]]] = []

    def add(self, name: str, vectors: Sequence[Tensor]) -> None:
        """Another network, by its vectors (n, sum C_l) at every subject's `points`; of the first, the levels too."""
        self.columns.insert(1, (name, colours(vectors, self.inside, self.channels)))  # beside the first
        if len(self.columns) == 1:
            parts = [v.split(self.channels, dim=1) for v in vectors]
            self.columns += [(f"level {i}", colours([p[i] for p in parts], self.inside)) for i in range(len(parts[0]))]

    def draw(self, folder: Path) -> list[Path]:
        """Write pca_<case>.png of every subject."""
        written = []
        for number, subject in enumerate(self.subjects):
            written.append(folder / f"pca_{subject.case}.png")
            draw_grid(written[-1], self._rows(number), PLANES, subject.case, NOTE)
        return written

    def _rows(self, number: int) -> list[list[dict[str, Any] | None]]:
        rows: list[list[dict[str, Any] | None]] = []
        first = 0
        for shown in self.planes[number]:
            last = first + len(shown.points)
            cells = [("image", values_at(self.subjects[number].image, shown))]
            cells += [(title, shown.picture(values[number][first:last])) for title, values in self.columns]
            rows.append([{"image": i, "plane": shown, "title": "" if first else title} for title, i in cells])
            first = last
        return rows


def colours(vectors: Sequence[Tensor], inside: Sequence[np.ndarray], channels: Any = None) -> list[np.ndarray]:
    """Foreground vectors of each subject (n foreground, C) and its mask (n,) -> RGB (n, 3) in [0, 1], black outside.

    Fitted to all subjects; channels: widths of the levels, which then weigh the same.
    """
    body = torch.cat(list(vectors))
    basis = fit_components(body[:: max(1, len(body) // FIT_POINTS)], groups=channels)
    shown = [np.zeros((len(mask), 3), np.float32) for mask in inside]
    for picture, v, mask in zip(shown, vectors, inside, strict=True):
        picture[mask] = basis.colours(v).numpy()
    return shown

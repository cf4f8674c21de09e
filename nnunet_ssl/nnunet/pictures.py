"""Pictures of dense features: planes through a volume, colours of principal components, similarity to one voxel.

Frame: arrays as the network sees them, after nnU-Net's transpose; planes are named by the array axis that they cut,
because where a patient's left lies is not known there. Figures are made without pyplot, which keeps state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_ssl.nnunet.files import replacing

PLANES = ("across axis 0", "across axis 1", "across axis 2")
MAX_SIDE = 128  # pixels of a plane's longer side; larger planes are thinned out


@dataclass(frozen=True)
class Plane:
    """A plane of voxels. axis: the one that it is perpendicular to; points (h * w, 3) its voxels in row order."""

    axis: int
    index: int
    points: np.ndarray
    shape: tuple[int, int]
    aspect: float  # height of a pixel over its width

    def picture(self, values: np.ndarray) -> np.ndarray:
        """Values (h * w,) or (h * w, c) as an image (h, w[, c])."""
        return values.reshape(*self.shape, *values.shape[1:])

    def pixel_of(self, point: Sequence[int]) -> tuple[float, float]:
        """Column and row, in pixels, of a voxel of this plane."""
        rows, columns = (axis for axis in range(3) if axis != self.axis)
        grid = self.points.reshape(*self.shape, 3)
        row = np.abs(grid[:, 0, rows] - point[rows]).argmin()
        column = np.abs(grid[0, :, columns] - point[columns]).argmin()
        return float(column), float(row)


def plane(shape: Sequence[int], axis: int, index: int, spacing_mm: Sequence[float]) -> Plane:
    """The plane `index` along `axis` of a volume of `shape` (z, y, x) voxels of `spacing_mm`."""
    rows, columns = (a for a in range(3) if a != axis)
    step = [max(1, -(-int(shape[a]) // MAX_SIDE)) for a in (rows, columns)]
    first, second = np.arange(0, shape[rows], step[0]), np.arange(0, shape[columns], step[1])
    points = np.empty((len(first), len(second), 3), dtype=np.int64)
    points[..., axis] = index
    points[..., rows], points[..., columns] = np.meshgrid(first, second, indexing="ij")
    aspect = spacing_mm[rows] * step[0] / (spacing_mm[columns] * step[1])
    return Plane(axis, int(index), points.reshape(-1, 3), (len(first), len(second)), float(aspect))


def values_at(image: Any, planes: Plane) -> np.ndarray:
    """First channel of `image` (C, z, y, x) on a plane, as an image (h, w); one slab is read."""
    index: list[Any] = [slice(0, 1), slice(None), slice(None), slice(None)]
    index[planes.axis + 1] = slice(planes.index, planes.index + 1)
    slab = np.asarray(image[tuple(index)])[0]
    local = planes.points.copy()
    local[:, planes.axis] = 0
    return planes.picture(slab[tuple(local.T)].astype(np.float32))


def draw_grid(path: str | Path, rows: Sequence[Sequence[dict[str, Any] | None]], row_names: Sequence[str],
              title: str, note: str = "") -> None:  # fmt: skip
    """Write a PNG of a grid of cells. A cell: image (h, w[, 3]), plane, title, and optionally mark (a voxel), limits,
    colours (a matplotlib colour map, gray for an image). None leaves a cell empty."""
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(2.3 * columns + 0.4, 2.4 * len(rows) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, cells in enumerate(rows):
        for column in range(columns):
            _draw_cell(axes[row][column], cells[column] if column < len(cells) else None)
        axes[row][0].set_ylabel(row_names[row], fontsize=9)
    figure.suptitle(title, fontsize=11)
    if note:
        figure.supxlabel(note, fontsize=7)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=110, format="png")


def _draw_cell(axes: Any, cell: dict[str, Any] | None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    if cell is None:
        axes.set_axis_off()
        return
    shown: Plane = cell["plane"]
    low, high = cell.get("limits") or _limits(cell["image"])
    axes.imshow(cell["image"], cmap=cell.get("colours", "gray"), vmin=low, vmax=high, aspect=shown.aspect,
                origin="upper" if shown.axis == 0 else "lower", interpolation="nearest")  # fmt: skip
    axes.set_title(cell.get("title", ""), fontsize=8)
    if cell.get("mark") is not None:
        axes.plot(*shown.pixel_of(cell["mark"]), marker="+", color="red", markersize=11, markeredgewidth=1.6)


def _limits(image: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(image, (1, 99))
    return float(low), float(high if high > low else low + 1)

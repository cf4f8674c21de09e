"""There and back between two subjects: does the nearest neighbour of the nearest neighbour lead home?

No labels are needed: a voxel of subject A goes to its most similar voxel of B, from there back to A; the distance in mm
to where it started tells how consistently the features name places of the anatomy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Standard:
    """Channels standardised, vectors on the unit sphere: what makes raw voxel vectors comparable by cosine.

    Raw, the few channels with the largest mean decide every similarity.
    """

    mean: Tensor  # (C,)
    scale: Tensor  # (C,) 1 / standard deviation, 0 for a channel that does not vary

    @classmethod
    def of(cls, *groups: Tensor) -> Standard:
        """Moments over the vectors (n_i, C) of all groups together."""
        everything = torch.cat([group.float() for group in groups])
        mean, std = everything.mean(0), everything.std(0)
        return cls(mean, torch.where(std > 1e-6 * mean.abs().clamp_min(1e-6), 1 / std, torch.zeros_like(std)))

    def __call__(self, vectors: Tensor) -> Tensor:
        """(n, C) -> (n, C) of length one."""
        return functional.normalize((vectors.float() - self.mean) * self.scale, dim=1)


def nearest(queries: Tensor, keys: Tensor, rows: int = 1024) -> Tensor:
    """Row of `keys` (m, d) with the largest inner product, for each row of `queries` (n, d) -> (n,) int64."""
    return torch.cat([(part @ keys.T).argmax(1) for part in queries.split(rows)])


def round_trip(a: Tensor, points_a: np.ndarray, b: Tensor, spacing_mm: Sequence[float]) -> dict[str, Any]:
    """Distances (mm) from points of A to where they return to by way of B.

    a (n, d), b (m, d): comparable unit vectors; points_a (n, D) voxels. Chance is the distance between two random
    points of A. Returns mean and median, of both, and the fraction of points that return to themselves.
    """
    back = nearest(b[nearest(a, b)], a).numpy()
    millimetres = points_a * np.asarray(spacing_mm, dtype=np.float64)
    distances = np.linalg.norm(millimetres - millimetres[back], axis=1)
    other = np.random.default_rng(0).permutation(len(points_a))
    chance = np.linalg.norm(millimetres - millimetres[other], axis=1)
    return {
        "round_trip_mm_mean": float(distances.mean()),
        "round_trip_mm_median": float(np.median(distances)),
        "round_trip_mm_mean_chance": float(chance.mean()),
        "round_trip_mm_median_chance": float(np.median(chance)),
        "round_trip_returned": float((back == np.arange(len(back))).mean()),
        "points": len(points_a),
    }

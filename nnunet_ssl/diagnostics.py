"""Signs of learning and of collapse, measured on voxel vectors or embeddings, as plain floats.

Rows are points: (N, d), row i of both views the same point. Everything is computed in float32 at least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS = 1024  # rows of a similarity matrix that are held at once


def _wide(z: Tensor, name: str = "vectors") -> Tensor:
    if z.ndim != 2 or len(z) == 0:
        raise ValueError(f"{name}: expected (N, d) with N >= 1, found {tuple(z.shape)}")
    return z.detach().to(torch.promote_types(z.dtype, torch.float32))


def _unit_pair(z_a: Tensor, z_b: Tensor) -> tuple[Tensor, Tensor]:
    if z_a.shape != z_b.shape:
        raise ValueError(f"expected two (N, d), found {tuple(z_a.shape)} and {tuple(z_b.shape)}")
    return F.normalize(_wide(z_a), dim=1), F.normalize(_wide(z_b), dim=1)


def _product(rows: Tensor, columns: Tensor) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):  # half precision would make ties
        return rows @ columns.T


@torch.no_grad()
def retrieval_at_1(z_a: Tensor, z_b: Tensor) -> float:
    """How often a point's nearest neighbour by cosine in the other view is the point itself, averaged over directions.

    Chance is 1 / N. Of k neighbours that are equally near, the own one counts 1 / k, so that vectors that all
    collapsed to one point score chance, not 1.

    :param z_a: (N, d)
    :param z_b: (N, d)
    :return: a fraction; nan where a vector holds nan
    :raises ValueError: shapes differ, or no rows
    """
    unit_a, unit_b = _unit_pair(z_a, z_b)
    if not (unit_a.isfinite().all() and unit_b.isfinite().all()):
        return math.nan
    return (_own_nearest(unit_a, unit_b) + _own_nearest(unit_b, unit_a)) / 2


def _own_nearest(queries: Tensor, keys: Tensor) -> float:
    hits = 0.0
    for start in range(0, len(queries), _ROWS):
        cosines = _product(queries[start : start + _ROWS], keys)
        own = cosines.diagonal(start)
        best = cosines.amax(1)
        ties = (cosines == best[:, None]).sum(1)
        hits += float(((own == best) / ties).sum())
    return hits / len(queries)


@torch.no_grad()
def alignment(z_a: Tensor, z_b: Tensor, alpha: float = 2.0) -> float:
    """Mean distance, to the power alpha, between the two views of a point (Wang & Isola, ICML 2020).

    Vectors are L2-normalised first.

    :param z_a: (N, d)
    :param z_b: (N, d)
    :param alpha: exponent; 2 in the paper's metric
    :return: 0 (views agree) to 2^alpha
    :raises ValueError: shapes differ, or no rows
    """
    unit_a, unit_b = _unit_pair(z_a, z_b)
    return float((unit_a - unit_b).norm(dim=1).pow(alpha).mean())


@torch.no_grad()
def uniformity(z: Tensor, t: float = 2.0) -> float:
    """Log of the mean of exp(-t |u - v|^2) over pairs of different rows (Wang & Isola, ICML 2020).

    Vectors are L2-normalised first.

    :param z: (N, d)
    :param t: 2 in the paper's metric
    :return: 0 (all rows the same) down to about -2t (rows spread over the sphere); 0 for one row
    :raises ValueError: no rows
    """
    unit = F.normalize(_wide(z), dim=1)
    count = len(unit)
    if count == 1:
        return 0.0
    total = 0.0
    for start in range(0, count, _ROWS):
        cosines = _product(unit[start : start + _ROWS], unit)
        potential = torch.exp(2 * t * (cosines - 1))  # |u - v|^2 = 2 - 2 <u, v>
        potential.diagonal(start).zero_()
        total += float(potential.sum(dtype=torch.float64 if z.device.type != "mps" else None))
    return math.log(total / (count * (count - 1))) if total > 0 else -math.inf if total == 0 else math.nan


@torch.no_grad()
def effective_rank(z: Tensor) -> float:
    """How many dimensions the vectors use (Roy & Vetterli, EUSIPCO 2007), rows centred.

    It is exp of the entropy of the singular values, normalised to add up to 1. Singular values below float32's
    resolution of the vectors count as zero: the rounding of collapsed vectors is no rank.

    :param z: (N, d)
    :return: 1 (collapsed to a point or a line) to min(N - 1, d); nan where a vector holds nan
    :raises ValueError: no rows
    """
    z = _wide(z).cpu().double()
    if not z.isfinite().all():
        return math.nan
    centred = z - z.mean(0)
    gram = centred.T @ centred if z.shape[1] <= len(z) else centred @ centred.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    singular = singular[singular > torch.finfo(torch.float32).eps * z.norm()]
    if len(singular) == 0:
        return 1.0
    share = singular / singular.sum()
    return float(torch.exp(-(share * share.log()).sum()))


@torch.no_grad()
def level_std(vectors: Tensor, channels: Sequence[int]) -> list[float]:
    """Standard deviation over points, averaged over each pyramid level's channels; near 0 where a level has collapsed.

    :param vectors: (N, sum of channels), as ``pyramid.gather`` gives them, not normalised
    :param channels: channels of each level, finest first
    :return: one number a level
    :raises ValueError: widths that do not add up, or no rows
    """
    wide = _wide(vectors)
    if wide.shape[1] != sum(channels):
        raise ValueError(f"vectors are {wide.shape[1]} wide, but channels {list(channels)} add up to {sum(channels)}")
    std = wide.std(0, correction=0)
    return [float(part.mean()) for part in torch.split(std, list(channels))]

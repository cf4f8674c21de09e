"""Wilcoxon's signed-rank test (Wilcoxon 1945), two-sided: exact where that is feasible, ties or not.

Here rather than taken from SciPy because a report has hundreds of small tests, and importing ``scipy.stats`` takes
longer than computing them; the tests compare the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

EXACT_UP_TO = 50  # differences; above, the normal approximation is good to the digits that are shown


def signed_rank_p(differences: Sequence[float] | ArrayLike) -> float | None:
    """Two-sided p-value that ``differences`` (n,) are symmetric about 0; None where all of them are 0.

    Zeros are dropped, ties get their mean rank. Up to 50 differences: the exact distribution over all signs given the
    ranks, ties included; above: normal with the variance corrected for ties, no continuity correction (as SciPy's).
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[np.isfinite(values) & (values != 0)]
    if len(values) == 0:
        return None
    ranks = _doubled_ranks(np.abs(values))
    positive = int(ranks[values > 0].sum())
    return _exact(ranks, positive) if len(values) <= EXACT_UP_TO else _normal(ranks, positive)


def _doubled_ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Twice the mean ranks, which are whole numbers."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (2 * last - counts + 1)[place]


def _exact(ranks: NDArray[np.int64], positive: int) -> float:
    """By the number of sign patterns for every sum of positive ranks, one rank added after the other."""
    ways = np.zeros(int(ranks.sum()) + 1)
    ways[0] = 1.0
    for rank in ranks:
        ways[rank:] = ways[rank:] + ways[: len(ways) - rank]
    total = ways.sum()  # 2^n <= 2^50: whole numbers are exact in float64
    tail = min(ways[: positive + 1].sum(), ways[positive:].sum())
    return float(min(1.0, 2.0 * tail / total))


def _normal(ranks: NDArray[np.int64], positive: int) -> float:
    """The sum has mean sum(r)/2 and variance sum(r^2)/4; mean ranks bring the correction for ties with them."""
    z = (positive - ranks.sum() / 2) / math.sqrt(float(np.square(ranks, dtype=np.float64).sum()) / 4)
    return math.erfc(abs(z) / math.sqrt(2))

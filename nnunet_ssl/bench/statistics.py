"""Means with their intervals, and paired tests, of scores that come by draw and subject.

Letters: R draws of the labelled cases, S subjects. A table of scores is (R, S): NaN where a subject was not scored.
Draws and subjects are two sources of spread, so both are resampled, each by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Summary:
    """mean: over subjects of the mean over draws. sd_draws: between the draws' means (None for one draw). low, high:
    95 % bootstrap interval over draws and subjects. draws, subjects: how many there are.
    """

    mean: float
    sd_draws: float | None
    low: float
    high: float
    draws: int
    subjects: int


@dataclass(frozen=True)
class Comparison:
    """Of an arm with its twin, on what both have. difference: mean of arm - twin, with its interval; p: two-sided
    Wilcoxon signed-rank over subjects, draws averaged first (None where all are equal); signs: of every draw's mean.
    """

    difference: float
    low: float
    high: float
    p: float | None
    signs: str
    draws: int
    subjects: int


def _draw_mean(table: Scores) -> Scores:
    """(R, S) -> (S,): mean over the draws that have the subject."""
    counts = np.isfinite(table).sum(0)
    return np.where(counts > 0, np.nansum(table, axis=0) / np.maximum(counts, 1), np.nan)


def _mean(table: Scores) -> float:
    return float(np.nanmean(_draw_mean(table)))


@lru_cache(maxsize=32)
def _resamples(draws: int, subjects: int, seed: int) -> tuple[Scores, Scores]:
    """How often each draw (RESAMPLES, R) and each subject (RESAMPLES, S) is in each resample, with replacement."""
    rng = np.random.default_rng(seed)
    counts = [rng.multinomial(n, np.full(n, 1.0 / n), RESAMPLES).astype(np.float64) for n in (draws, subjects)]
    return counts[0], counts[1]


def _interval(table: Scores, seed: int) -> tuple[float, float]:
    """Percentiles 2.5 and 97.5 of the mean over tables whose draws and subjects are drawn with replacement."""
    of_draws, of_subjects = _resamples(*table.shape, seed)
    known = np.isfinite(table)
    counts = of_draws @ known  # (RESAMPLES, S)
    by_subject = of_draws @ np.where(known, table, 0.0) / np.maximum(counts, 1.0)
    weights = of_subjects * (counts > 0)
    total = weights.sum(1)
    means = (weights * by_subject).sum(1)[total > 0] / total[total > 0]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def summarise(table: Scores, seed: int = 0) -> Summary:
    """Of one arm's scores (R, S). Raises ValueError where there is no score at all."""
    table = _checked(table)
    by_draw = np.nanmean(table, axis=1)
    spread = float(np.std(by_draw, ddof=1)) if len(by_draw) > 1 else None
    return Summary(_mean(table), spread, *_interval(table, seed), *table.shape)


def compare(arm: Scores, twin: Scores, seed: int = 0) -> Comparison:
    """Of two arms with the same draws and subjects, both (R, S) and in the same order."""
    from scipy.stats import wilcoxon

    if arm.shape != twin.shape:
        raise ValueError(f"the arms are {arm.shape} and {twin.shape}; expected the same draws and subjects")
    difference = _checked(arm - twin)
    by_subject = _draw_mean(difference)
    by_subject = by_subject[np.isfinite(by_subject)]
    p = float(wilcoxon(by_subject).pvalue) if np.any(by_subject != 0) else None
    signs = "".join("+" if d > 0 else "-" if d < 0 else "0" for d in np.nanmean(difference, axis=1))
    return Comparison(_mean(difference), *_interval(difference, seed), p, signs, len(difference), len(by_subject))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values of one family of tests, corrected by Holm's step-down method; None stays None and does not count."""
    known = sorted((p, i) for i, p in enumerate(values) if p is not None and not math.isnan(p))
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[index] = largest
    return corrected


def _checked(table: Scores) -> Scores:
    """The table without draws and subjects that have no score."""
    table = np.atleast_2d(np.asarray(table, dtype=np.float64))
    table = table[np.isfinite(table).any(1)]
    table = table[:, np.isfinite(table).any(0)]
    if table.size == 0:
        raise ValueError("there is no score")
    return table

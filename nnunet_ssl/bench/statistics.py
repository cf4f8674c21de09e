"""Means with their intervals, and paired tests, of scores that come by draw and subject.

Letters: R draws of the labelled cases, S subjects, B resamples. A table of scores is (R, S): NaN where a subject was
not scored. Draws and subjects are two sources of spread, so both are resampled, each by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nnunet_ssl.bench.signed_rank import signed_rank_p

Scores = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Summary:
    """mean: over subjects of the mean over draws. sd: between the subjects' means over draws (n - 1; None for one
    subject). sd_draws: between the draws' means (None for one draw). low, high: 95 % bootstrap interval over draws and
    subjects. draws, subjects: how many there are.
    """

    mean: float
    sd: float | None
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


def mean_of(table: Scores) -> float:
    """Mean over subjects of their mean over draws."""
    return float(np.nanmean(_draw_mean(table)))


@lru_cache(maxsize=32)
def _resamples(draws: int, subjects: int, seed: int) -> tuple[Scores, Scores]:
    """How often each draw (B, R) and each subject (B, S) is in each resample, with replacement."""
    rng = np.random.default_rng(seed)
    counts = [rng.multinomial(n, np.full(n, 1.0 / n), RESAMPLES).astype(np.float64) for n in (draws, subjects)]
    return counts[0], counts[1]


def resampled_means(table: Scores, seed: int = 0) -> Scores:
    """(R, S) -> (B,): the mean of tables whose draws and subjects are drawn with replacement; NaN for an empty one."""
    of_draws, of_subjects = _resamples(*table.shape, seed)
    known = np.isfinite(table)
    if known.all():  # the rule: two matrix products and one sum
        return np.einsum("bs,bs->b", of_draws @ table, of_subjects) / float(table.size)
    counts = of_draws @ known  # (B, S)
    by_subject = of_draws @ np.where(known, table, 0.0) / np.maximum(counts, 1.0)
    weights = of_subjects * (counts > 0)
    total = weights.sum(1)
    return np.where(total > 0, (weights * by_subject).sum(1) / np.maximum(total, 1.0), np.nan)


def interval_of(means: Scores) -> tuple[float, float]:
    """Percentiles 2.5 and 97.5 of resampled means (B,); resamples without any score do not count."""
    low, high = np.percentile(means[np.isfinite(means)], [2.5, 97.5])
    return float(low), float(high)


def summarise(table: Scores, seed: int = 0) -> Summary:
    """Of one arm's scores (R, S). Raises ValueError where there is no score at all."""
    table = without_empty(table)
    by_draw, by_subject = np.nanmean(table, axis=1), _draw_mean(table)
    spreads = [float(np.std(values, ddof=1)) if len(values) > 1 else None for values in (by_subject, by_draw)]
    return Summary(mean_of(table), *spreads, *interval_of(resampled_means(table, seed)), *table.shape)


def compare(arm: Scores, twin: Scores, seed: int = 0) -> Comparison:
    """Of two arms with the same draws and subjects, both (R, S) and in the same order."""
    if arm.shape != twin.shape:
        raise ValueError(f"the arms are {arm.shape} and {twin.shape}; expected the same draws and subjects")
    difference = without_empty(arm - twin)
    by_subject = _draw_mean(difference)
    signs = "".join(sign_of(d) for d in np.nanmean(difference, axis=1))
    low, high = interval_of(resampled_means(difference, seed))
    p = signed_rank_p(by_subject)
    return Comparison(mean_of(difference), low, high, p, signs, len(difference), len(by_subject))


def sign_of(value: float) -> str:
    """+, - or 0."""
    return "+" if value > 0 else "-" if value < 0 else "0"


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values of one family of tests, corrected by Holm's step-down method; None stays None and does not count."""
    known = sorted((p, i) for i, p in enumerate(values) if p is not None and not math.isnan(p))
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[index] = largest
    return corrected


def without_empty(table: Scores) -> Scores:
    """The table without draws and subjects that have no score. Raises ValueError where nothing is left."""
    table = np.atleast_2d(np.asarray(table, dtype=np.float64))
    table = table[np.isfinite(table).any(1)]
    table = table[:, np.isfinite(table).any(0)]
    if table.size == 0:
        raise ValueError("there is no score")
    return table

"""The scores of an arm as arrays: by draw, subject and class.

Letters: R draws, S subjects, C classes. A subject that several folds scored has the mean of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ssl.bench.statistics import Scores

METRICS = ("dice", "nsd")
ORIGINAL = "original"  # the grid of the images, on which every row is scored


@dataclass(frozen=True)
class Cube:
    """values: metric -> (R, S, C), NaN where there is none: the reference lacks the class, or the job is missing."""

    draws: Sequence[int]
    subjects: Sequence[str]
    classes: Sequence[str]
    values: Mapping[str, NDArray[np.float64]]

    def table(self, metric: str, target: str | None = None) -> Scores:
        """(R, S): of one class, or of a subject's mean over the classes that it has."""
        values = self.values[metric]
        if target is not None:
            return values[:, :, self.classes.index(target)]
        counts = np.isfinite(values).sum(2)
        return np.where(counts > 0, np.nansum(values, axis=2) / np.maximum(counts, 1), np.nan)

    def shared(self, other: Cube) -> tuple[Cube, Cube, str]:
        """Both with the draws and subjects that both have; words on what was left out, empty where nothing was."""
        draws = [d for d in self.draws if d in other.draws]
        own = set(other.subjects)
        subjects = [s for s in self.subjects if s in own]
        parts = self._part(draws, subjects), other._part(draws, subjects)
        counted = (("draws", draws, self.draws, other.draws), ("subjects", subjects, self.subjects, other.subjects))
        words = [f"{len(both)} shared {what}" for what, both, a, b in counted if len(both) < max(len(a), len(b))]
        return *parts, " and ".join(words)

    def _part(self, draws: Sequence[int], subjects: Sequence[str]) -> Cube:
        if (list(draws), list(subjects)) == (list(self.draws), list(self.subjects)):
            return self
        places = {s: i for i, s in enumerate(self.subjects)}
        chosen = np.ix_([self.draws.index(d) for d in draws], [places[s] for s in subjects])
        return Cube(draws, subjects, self.classes, {metric: table[chosen] for metric, table in self.values.items()})


def scores_of(row: Mapping[str, Any], grid: str) -> Mapping[str, Any]:
    """Subject -> class -> metric -> score of a result on one grid; empty where it was not scored there."""
    return row["scores"] if grid == ORIGINAL else row.get("grids", {}).get(grid, {})


def cube_of(rows: Sequence[Mapping[str, Any]], grid: str = ORIGINAL) -> Cube:
    """All scores of an arm's rows."""
    scores = [scores_of(row, grid) for row in rows]
    draws = sorted({row["job"]["draw"] for row in rows})
    subjects = sorted({subject for one in scores for subject in one})
    # in the order of the dataset's labels, which every row has
    classes = list(dict.fromkeys(name for one in scores for names in one.values() for name in names))
    places = {s: i for i, s in enumerate(subjects)}
    shape = (len(draws), len(subjects), len(classes))
    sums, counts = np.zeros((len(METRICS), *shape)), np.zeros((len(METRICS), *shape))
    for row, one in zip(rows, scores, strict=True):
        values = np.array(_values(one, classes), dtype=np.float64).reshape(len(one), len(classes), len(METRICS))
        where = draws.index(row["job"]["draw"]), [places[subject] for subject in one]
        known = np.isfinite(values)
        # metrics first; subjects of a row are different ones, so nothing is added twice
        sums[:, where[0], where[1]] += np.where(known, values, 0.0).transpose(2, 0, 1)
        counts[:, where[0], where[1]] += known.transpose(2, 0, 1)
    values = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return Cube(draws, subjects, classes, dict(zip(METRICS, values, strict=True)))


def _values(scores: Mapping[str, Any], classes: Sequence[str]) -> list[float | None]:
    try:  # the rule: every subject has every class
        return [found[metric] for names in scores.values() for found in map(names.__getitem__, classes)
                for metric in METRICS]  # fmt: skip
    except KeyError:
        nothing: dict[str, Any] = {}
    return [found.get(metric) for names in scores.values() for found in (names.get(c, nothing) for c in classes)
            for metric in METRICS]  # fmt: skip

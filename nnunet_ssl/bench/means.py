"""Means over the tasks of a grid: every class of every dataset counts once.

An arm's mean says which datasets are in it; where one is missing or incomplete, the row says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunet_ssl.bench.report import Arm
from nnunet_ssl.bench.statistics import Scores, interval_of, mean_of, resampled_means, without_empty
from nnunet_ssl.bench.tables import row_of

Part = tuple[int, Scores]  # seed of a dataset, scores or differences (R, S) of one of its classes


def means_of(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Rows as of ``tables.row_of``, one for each number of labelled cases, arm and grid; none for a single dataset.
    ``whole``: whether every dataset is in it.

    The interval resamples every dataset's draws and subjects by themselves (its classes share them) and averages;
    classes are not resampled. ``signs`` counts classes; there is no test, as classes of one subject hang together.
    """
    datasets = list(dict.fromkeys(arm.key[0] for arm in arms))
    groups: dict[tuple[Any, ...], list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm.key[1:], []).append(arm)
    if len(datasets) < 2:
        return []
    return [_mean(members, datasets) for members in groups.values()]


def _mean(members: Sequence[Arm], datasets: Sequence[int]) -> dict[str, Any]:
    seeds = {dataset: number + 1 for number, dataset in enumerate(datasets)}
    found = [arm for arm in members if arm.cube is not None]
    row = row_of(members[0]) | {"note": "", "p": None, "p_holm": None, "sd": None, "sd_draws": None}
    for metric in ("dice", "nsd"):
        parts = [(seeds[arm.key[0]], arm.cube.table(metric, t.name)) for arm in found for t in arm.targets
                 if arm.cube and t.summaries[metric]]  # fmt: skip
        mean, low, high = _averaged(parts)
        row |= {"dice": mean, "low": low, "high": high} if metric == "dice" else {"nsd": mean}
        if metric == "dice":
            row["dataset"] = f"mean of {len(parts)} classes ({len(found)} of {len(datasets)} datasets)"
    row |= _difference(found, seeds)
    row["parameters"] = _same([arm.parameters for arm in found])
    row["seconds"] = sum(arm.seconds or 0.0 for arm in found) if found else None
    row["jobs"], row["asked"] = sum(len(arm.rows) for arm in members), sum(len(arm.jobs) for arm in members)
    row["draws"] = row["subjects"] = None
    row["whole"] = len(found) == len(datasets)
    row["note"] = "; ".join(_remarks(members, row))
    return row


def _difference(found: Sequence[Arm], seeds: dict[int, int]) -> dict[str, Any]:
    parts = []
    for arm in found:
        if arm.cube is not None and arm.twin is not None and arm.twin.cube is not None:
            own, theirs, _ = arm.cube.shared(arm.twin.cube)
            parts += [(seeds[arm.key[0]], own.table("dice", t.name) - theirs.table("dice", t.name))
                      for t in arm.targets if t.comparison]  # fmt: skip
    mean, low, high = _averaged(parts)
    signs = [mean_of(table) > 0 for _, table in parts]
    counted = f"{sum(signs)} of {len(signs)} classes up" if signs else None
    return {"difference": mean, "difference_low": low, "difference_high": high, "signs": counted}


def _averaged(parts: Sequence[Part]) -> tuple[float | None, float | None, float | None]:
    if not parts:
        return None, None, None
    tables = [(seed, without_empty(table)) for seed, table in parts]
    means = np.mean([resampled_means(table, seed) for seed, table in tables], axis=0)
    return float(np.mean([mean_of(table) for _, table in tables])), *interval_of(means)


def _remarks(members: Sequence[Arm], row: dict[str, Any]) -> list[str]:
    """What the mean lacks, and whose notes are worth repeating."""
    nothing = [str(arm.key[0]) for arm in members if not arm.rows]
    partly = [f"{arm.key[0]} ({len(arm.rows)} of {len(arm.jobs)} jobs)" for arm in members
              if 0 < len(arm.rows) < len(arm.jobs)]  # fmt: skip
    compared = [arm for arm in members if arm.comparison is not None]
    lines = ["LEAKED: see the datasets"] if any(arm.note.startswith("LEAKED") for arm in members) else []
    if not row["whole"]:
        lines.append(f"over {row['dataset'].removeprefix('mean of ')}")
    if nothing:
        lines.append(f"lacks dataset {', '.join(nothing)}")
    if partly:
        lines.append(f"incomplete: dataset {', '.join(partly)}")
    if row["difference"] is not None and len(compared) < sum(bool(arm.rows) for arm in members):
        lines.append(f"difference over dataset {', '.join(str(arm.key[0]) for arm in compared)} only")
    return lines


def _same(values: Sequence[int | None]) -> int | None:
    """The value where all datasets have the same: heads grow with the number of classes."""
    return values[0] if len(set(values)) == 1 else None

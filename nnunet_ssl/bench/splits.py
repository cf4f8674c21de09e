"""The folds of a dataset of the benchmark: a function of the names, the groups and a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def make_splits(
    cases: Mapping[str, str], folds: int, seed: int, groups: Mapping[str, str] | None = None
) -> list[dict[str, list[str]]]:
    """``folds`` parts of the subjects, each once the validation part: what nnU-Net reads as splits_final.json.

    cases: case -> subject; all cases of a subject lie in one part. groups: subject -> group; the subjects of every
    group are then spread evenly, so that the numbers of a group in two parts differ by one at most. Within a group
    the order is a permutation by ``seed`` of the sorted names. Raises ValueError for fewer subjects than folds.
    """
    subjects = sorted(set(cases.values()))
    if len(subjects) < folds:
        raise ValueError(f"{len(subjects)} subjects for {folds} folds")
    rng = np.random.default_rng(seed)
    order: list[str] = []
    for group in sorted({(groups or {}).get(subject, "") for subject in subjects}):
        members = [subject for subject in subjects if (groups or {}).get(subject, "") == group]
        order += [members[i] for i in rng.permutation(len(members))]
    # dealt in turn, over the groups' borders: the parts differ by one subject at most
    part = {subject: number % folds for number, subject in enumerate(order)}
    return [
        {"train": _of(cases, [s for s in subjects if part[s] != fold]),
         "val": _of(cases, [s for s in subjects if part[s] == fold])}
        for fold in range(folds)
    ]  # fmt: skip


def _of(cases: Mapping[str, str], subjects: Sequence[str]) -> list[str]:
    return sorted(case for case, subject in cases.items() if subject in subjects)

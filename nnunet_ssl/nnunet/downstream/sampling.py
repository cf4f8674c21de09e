"""Which of the labelled cases a training may see: nested subsets, one permutation a draw."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.files import write_json

FILE_NAME = "labelled_cases.json"


def case_groups(folder: str | Path, dataset_json: Mapping[str, Any]) -> dict[str, str]:
    """Case -> group (pathology, centre, ...) of a dataset: ``groups.csv`` (columns case, group) in its preprocessed
    `folder`, beside splits_final.json, or else "groups" in dataset.json; {} where there is neither.
    """
    path = Path(folder) / "groups.csv"
    if not path.is_file():
        return {str(case): str(group) for case, group in (dataset_json.get("groups") or {}).items()}
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not all(row.get("case") and row.get("group") for row in rows):
        raise UserError(f"{path}: expected a header with the columns case and group, and both in each row.")
    return {row["case"].strip(): row["group"].strip() for row in rows}


def case_subjects(dataset_json: Mapping[str, Any]) -> dict[str, str]:
    """Case -> subject of a dataset with several images of one (frames, visits): "subjects" in dataset.json, or {}."""
    return {str(case): str(subject) for case, subject in (dataset_json.get("subjects") or {}).items()}


def choose_cases(
    cases: Sequence[str],
    labelled: dict[str, int] | None,
    groups: Mapping[str, str] | None = None,
    subjects: Mapping[str, str] | None = None,
) -> list[str]:
    """The cases of the first ``n`` of a permutation of the sorted subjects that depends on ``draw`` alone, sorted.

    So the cases of a smaller n are among those of a larger one, and every arm of a comparison gets the same ones.
    subjects: case -> subject, where a subject has several cases, which are then taken all or none; without it every
    case is a subject. groups: case -> group; the permutation then takes one subject of each group in turn, so that the
    numbers of two groups differ by one at most while both have some left. Raises UserError where there are fewer
    subjects than n, a case without a subject or a group, or a subject in two groups. None keeps all.
    """
    if labelled is None:
        return sorted(cases)
    _require_all("subject", subjects, cases)
    _require_all("group", groups, cases)
    members: dict[str, list[str]] = {}
    for case in sorted(cases):
        members.setdefault(subjects[case] if subjects else case, []).append(case)
    n, draw = labelled["n"], labelled["draw"]
    if n > len(members):
        what = f"training cases of {len(members)} subjects, which it counts" if subjects else "training cases"
        raise UserError(f"ssl.labelled.n is {n}, but this fold has {len(cases)} {what}. Lower it.")
    rng = np.random.default_rng([draw, len(members)])
    order: list[str] = np.array(sorted(members))[rng.permutation(len(members))].tolist()
    if groups:
        order = _in_turn(order, {subject: _group_of(subject, own, groups) for subject, own in members.items()})
    return sorted(case for subject in order[:n] for case in members[subject])


def _require_all(what: str, of_case: Mapping[str, str] | None, cases: Sequence[str]) -> None:
    missing = [case for case in sorted(cases) if of_case and case not in of_case]
    if missing:
        where = "groups.csv or dataset.json" if what == "group" else "dataset.json"
        raise UserError(
            f"{len(missing)} training cases have no {what} ({', '.join(missing[:3])}). Give every case one in {where}, "
            f"or remove the {what}s."
        )


def _group_of(subject: str, cases: Sequence[str], groups: Mapping[str, str]) -> str:
    found = sorted({groups[case] for case in cases})
    if len(found) > 1:
        raise UserError(
            f"The cases of subject {subject} are of the groups {', '.join(found)}; expected one group a subject. Mend "
            "groups.csv or dataset.json."
        )
    return found[0]


def _in_turn(order: Sequence[str], groups: Mapping[str, str]) -> list[str]:
    """The first subject of every group in their order, then the second of every group, ..."""
    seen: Counter[str] = Counter()
    rounds = {}
    for subject in order:
        rounds[subject] = seen[groups[subject]]
        seen[groups[subject]] += 1
    return sorted(order, key=lambda subject: rounds[subject])  # stable


def record_cases(
    folder: str | Path, labelled: dict[str, int] | None, chosen: list[str], fold: Any, resumed: bool
) -> None:
    """Write the choice into the output folder. A training that is continued must have the choice it began with."""
    path = Path(folder) / FILE_NAME
    content = {"labelled": labelled, "fold": fold, "cases": chosen}
    if resumed and path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))["cases"]
        if before != chosen:
            raise UserError(
                f"This training began with the cases {before} ({path}) and would go on with {chosen}: the split or "
                "ssl.labelled has changed. Restore it, or start again without --c."
            )
        return
    write_json(path, content)


def seed_generators(seed: int | None, epoch: int, rank: int) -> None:
    """Seed Python's, numpy's and torch's global generators, which nnU-Net draws from; None leaves them alone.

    What an epoch then draws in this process depends on the three numbers alone, so it is the same after --c.
    """
    if seed is None:
        return
    numbers = np.random.SeedSequence([seed, epoch, rank]).generate_state(3)
    random.seed(int(numbers[0]))
    np.random.seed(int(numbers[1]))  # noqa: NPY002
    torch.manual_seed(int(numbers[2]))

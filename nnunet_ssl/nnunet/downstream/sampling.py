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


def choose_cases(
    cases: Sequence[str], labelled: dict[str, int] | None, groups: Mapping[str, str] | None = None
) -> list[str]:
    """The first ``n`` of a permutation of the sorted cases that depends on ``draw`` alone, sorted.

    So the cases of a smaller n are among those of a larger one, and every arm of a comparison gets the same ones.
    groups: case -> group; the permutation then takes one case of each group in turn, so that the numbers of two groups
    differ by one at most while both have cases left. Raises UserError where there are fewer cases than n, or one
    without a group. None keeps all.
    """
    if labelled is None:
        return sorted(cases)
    n, draw = labelled["n"], labelled["draw"]
    if n > len(cases):
        raise UserError(f"ssl.labelled.n is {n}, but this fold has {len(cases)} training cases. Lower it.")
    rng = np.random.default_rng([draw, len(cases)])
    order: list[str] = np.array(sorted(cases))[rng.permutation(len(cases))].tolist()
    if groups:
        missing = [case for case in sorted(cases) if case not in groups]
        if missing:
            found = f"{len(missing)} training cases have no group ({', '.join(missing[:3])}"
            raise UserError(f"{found}). Give every case one in groups.csv or dataset.json, or remove the groups.")
        order = _in_turn(order, groups)
    return sorted(order[:n])


def _in_turn(order: Sequence[str], groups: Mapping[str, str]) -> list[str]:
    """The first of every group in their order, then the second of every group, ..."""
    seen: Counter[str] = Counter()
    rounds = {}
    for case in order:
        rounds[case] = seen[groups[case]]
        seen[groups[case]] += 1
    return sorted(order, key=lambda case: rounds[case])  # stable


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

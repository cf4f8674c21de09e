"""Which of the labelled cases a training may see: nested subsets, one permutation a draw."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.files import write_json

FILE_NAME = "labelled_cases.json"


def choose_cases(cases: Sequence[str], labelled: dict[str, int] | None) -> list[str]:
    """The first ``n`` of a permutation of the sorted cases that depends on ``draw`` alone, sorted.

    So the cases of a smaller n are among those of a larger one, and every arm of a comparison gets the same ones.
    Raises UserError where there are fewer cases than n. None keeps all.
    """
    if labelled is None:
        return sorted(cases)
    n, draw = labelled["n"], labelled["draw"]
    if n > len(cases):
        raise UserError(f"ssl.labelled.n is {n}, but this fold has {len(cases)} training cases. Lower it.")
    order = np.random.default_rng([draw, len(cases)]).permutation(len(cases))
    return sorted(np.array(sorted(cases))[order[:n]].tolist())


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

"""nnU-Net's folds: its own split of the training cases with its failures in words, and what a fold validates on before
anything of it is trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ssl.errors import UserError

Split = tuple[list[str], list[str]]
SPLITS = "splits_final.json"
FOLDS = 5  # that nnU-Net makes where there is no such file
SEED = 12345  # nnU-Net's, for these


def first_fold(preprocessed: Path, cases: int) -> str:
    """The fold to begin with: 0, or all where `cases` are too few to be cut into nnU-Net's folds."""
    return "all" if cases < FOLDS and not (preprocessed / SPLITS).is_file() else "0"


def stock_split(fold: Any, split: Callable[[], Split]) -> Split:
    """(training, validation) cases of a fold as nnU-Net makes them.

    Raises UserError where it cannot: it makes five folds, which takes five cases.
    """
    try:
        training, validation = split()
    except ValueError as error:
        raise UserError(
            f"Fold {fold} cannot be made: nnU-Net cuts the labelled cases into five folds, and there are too few "
            f"({error}). Use fold all, or write your own {SPLITS} into the preprocessed folder."
        ) from None
    if fold != "all" and (not training or not validation):
        raise UserError(f"Fold {fold} has no {'validation' if training else 'training'} cases; use fold all.")
    return training, validation


def validation_cases(folders: Sequence[Path], cases: Sequence[str], fold: int | str) -> list[str]:
    """The validation cases of a fold, as nnUNetTrainer.do_split (nnunetv2 2.8) will have them.

    :param folders: where splits_final.json may lie: the preprocessed dataset, then the raw one, whose file nnU-Net's
        planner copies. Without one nnU-Net makes five folds of the sorted cases.
    :param fold: its number, or "all", which validates on every case. A number beyond the folds of the file is a
        random fifth of the cases.
    :raises UserError: for a file that cannot be read as a list of folds, and for fewer cases than folds.
    """
    if fold == "all":
        return sorted(cases)
    path = next((folder / SPLITS for folder in folders if (folder / SPLITS).is_file()), None)
    number = int(fold)
    try:
        splits = _made(cases) if path is None else json.loads(path.read_text(encoding="utf-8"))
        if number < len(splits):
            return sorted(map(str, splits[number]["val"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        where = path or f"{len(cases)} cases"
        raise UserError(
            f"{where}: no folds there ({type(error).__name__}: {error}); expected nnU-Net's list of train and val."
        ) from None
    names = np.sort(list(cases))
    chosen = set(np.random.RandomState(SEED + number).choice(len(names), int(len(names) * 0.8), replace=False).tolist())
    return [str(name) for index, name in enumerate(names) if index not in chosen]


def _made(cases: Sequence[str]) -> list[dict[str, list[str]]]:
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    made: list[dict[str, list[str]]] = generate_crossval_split(sorted(cases), seed=SEED, n_splits=FOLDS)
    return made

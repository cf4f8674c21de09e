"""Which cases a fold validates on, before anything of it is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_ssl.errors import UserError

SPLITS = "splits_final.json"
SEED = 12345  # nnU-Net's, for the folds that it makes itself


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

    made: list[dict[str, list[str]]] = generate_crossval_split(sorted(cases), seed=SEED, n_splits=5)
    return made

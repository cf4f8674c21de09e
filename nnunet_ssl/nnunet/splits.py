"""nnU-Net's own split of the training cases, with its failures in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_ssl.errors import UserError

Split = tuple[list[str], list[str]]
FOLDS = 5  # that nnU-Net makes where there is no splits_final.json


def first_fold(preprocessed: Path, cases: int) -> str:
    """The fold to begin with: 0, or all where `cases` are too few to be cut into nnU-Net's folds."""
    return "all" if cases < FOLDS and not (preprocessed / "splits_final.json").is_file() else "0"


def stock_split(fold: Any, split: Callable[[], Split]) -> Split:
    """(training, validation) cases of a fold as nnU-Net makes them.

    Raises UserError where it cannot: it makes five folds, which takes five cases.
    """
    try:
        training, validation = split()
    except ValueError as error:
        raise UserError(
            f"Fold {fold} cannot be made: nnU-Net cuts the labelled cases into five folds, and there are too few "
            f"({error}). Use fold all, or write your own splits_final.json into the preprocessed folder."
        ) from None
    if fold != "all" and (not training or not validation):
        raise UserError(f"Fold {fold} has no {'validation' if training else 'training'} cases; use fold all.")
    return training, validation

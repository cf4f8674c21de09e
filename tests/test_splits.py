"""nnU-Net's split of the training cases: passed through, and its failures in words."""

from __future__ import annotations

import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.splits import first_fold, stock_split


def by_nnunet(cases: list[str]):
    split = generate_crossval_split(cases, seed=12345, n_splits=5)[0]
    return split["train"], split["val"]


def test_a_split_is_passed_through():
    cases = list("abcdefg")
    assert stock_split(0, lambda: by_nnunet(cases)) == by_nnunet(cases)


def test_all_cases_to_train_and_none_to_validate_is_fold_all_alone():
    assert stock_split("all", lambda: (["a"], [])) == (["a"], [])
    with pytest.raises(UserError, match="Fold 0 has no validation cases; use fold all"):
        stock_split(0, lambda: (["a"], []))
    with pytest.raises(UserError, match="Fold 0 has no training cases"):
        stock_split(0, lambda: ([], ["a"]))


@pytest.mark.parametrize("cases", [4, 1])
def test_too_few_cases_for_five_folds(cases):
    with pytest.raises(UserError, match=r"Fold 2 cannot be made.*five folds.*Use fold all"):
        stock_split(2, lambda: by_nnunet(list("abcd")[:cases]))


def test_the_fold_to_begin_with(tmp_path):
    assert first_fold(tmp_path, 5) == "0" and first_fold(tmp_path, 4) == "all"
    (tmp_path / "splits_final.json").write_text("[]")
    assert first_fold(tmp_path, 4) == "0", "a split of one's own"

"""Intervals and tests of the benchmark against SciPy and against the words that define them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from nnunet_ssl.bench.signed_rank import signed_rank_p
from nnunet_ssl.bench.statistics import RESAMPLES, compare, holm, resampled_means, summarise


def scores(draws: int, subjects: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(0.6 + 0.05 * rng.normal(size=(draws, 1)) + 0.1 * rng.normal(size=(1, subjects))
                   + 0.02 * rng.normal(size=(draws, subjects)), 0, 1)  # fmt: skip


def test_means_and_spread() -> None:
    table = scores(5, 30)
    found = summarise(table)
    assert found.mean == pytest.approx(table.mean()) and found.sd_draws == pytest.approx(table.mean(1).std(ddof=1))
    assert (found.draws, found.subjects) == (5, 30) and found.low < found.mean < found.high
    assert found.sd == pytest.approx(table.mean(0).std(ddof=1))
    assert summarise(table[:1]).sd_draws is None and summarise(table[:, :1]).sd is None
    assert summarise(np.full((2, 3), 0.5)) == type(found)(0.5, 0.0, 0.0, 0.5, 0.5, 2, 3)


def test_the_interval_is_that_of_scipy_for_one_draw() -> None:
    """One draw: the plain percentile bootstrap over subjects."""
    table = scores(1, 40)
    found = summarise(table)
    result = stats.bootstrap((table[0],), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(1))
    low, high = result.confidence_interval
    assert found.low == pytest.approx(low, abs=0.004) and found.high == pytest.approx(high, abs=0.004)


def test_draws_and_subjects_are_resampled_each_by_itself() -> None:
    """Against the resampling written out, one table after the other; and it is wider than subjects alone."""
    table, rng = scores(4, 25), np.random.default_rng(3)
    table[1, 3] = table[2, 7] = np.nan
    means = []
    for _ in range(RESAMPLES):
        chosen = table[rng.integers(4, size=4)][:, rng.integers(25, size=25)]
        means.append(np.nanmean(np.nanmean(chosen, axis=0)))
    low, high = np.percentile(means, [2.5, 97.5])
    found = summarise(table)
    assert found.low == pytest.approx(low, abs=0.008) and found.high == pytest.approx(high, abs=0.008)
    assert found.mean == pytest.approx(np.nanmean(np.nanmean(table, axis=0)))
    alone = summarise(np.nanmean(table, axis=0, keepdims=True))
    assert found.high - found.low > alone.high - alone.low


def test_a_comparison_is_paired_over_subjects_after_averaging_draws() -> None:
    arm, twin = scores(3, 20), scores(3, 20) - 0.03 + 0.02 * np.random.default_rng(5).normal(size=(3, 20))
    found = compare(arm, twin)
    by_subject = (arm - twin).mean(0)
    assert found.difference == pytest.approx(by_subject.mean())
    assert found.p == pytest.approx(stats.wilcoxon(arm.mean(0), twin.mean(0)).pvalue)
    assert found.signs == "".join("+" if d > 0 else "-" for d in (arm - twin).mean(1)) and found.subjects == 20
    nothing = compare(arm, arm)
    assert (nothing.p, nothing.signs, nothing.difference) == (None, "000", 0.0)
    with pytest.raises(ValueError, match="same draws and subjects"):
        compare(arm, twin[:, :-1])
    with pytest.raises(ValueError, match="no score"):
        summarise(np.full((2, 2), np.nan))


@pytest.mark.parametrize("number", [1, 2, 5, 12, 50, 51, 200])
def test_the_signed_rank_test_is_that_of_scipy(number: int) -> None:
    differences = np.random.default_rng(number).normal(0.2, 1, number)
    method = "exact" if number <= 50 else "asymptotic"
    assert signed_rank_p(differences) == pytest.approx(stats.wilcoxon(differences, method=method).pvalue, rel=1e-9)
    assert signed_rank_p(-differences) == pytest.approx(signed_rank_p(differences))


def test_ties_and_zeros_of_the_signed_rank_test() -> None:
    """Few values: against all 2^n sign patterns, written out; many: SciPy's normal approximation for ties."""
    rng = np.random.default_rng(0)
    few = np.array([0.1, -0.1, 0.2, 0.2, 0.0, -0.3, 0.4, 0.2])
    ranks, values = stats.rankdata(np.abs(few[few != 0])), few[few != 0]
    sums = np.array([np.dot(pattern, ranks) for pattern in itertools.product((0, 1), repeat=len(values))])
    positive = ranks[values > 0].sum()
    by_hand = min(1.0, 2 * min((sums <= positive).mean(), (sums >= positive).mean()))
    assert signed_rank_p(few) == pytest.approx(by_hand) and signed_rank_p([*few, np.nan]) == pytest.approx(by_hand)
    many = np.round(rng.normal(0.2, 1, 120), 1)
    scipys = stats.wilcoxon(many, zero_method="wilcox", correction=False, method="asymptotic").pvalue
    assert signed_rank_p(many) == pytest.approx(scipys)
    assert signed_rank_p(np.zeros(5)) is None and signed_rank_p([]) is None


def test_a_table_without_gaps_takes_the_same_way() -> None:
    """The short formula for whole tables and the one for gaps agree."""
    table = scores(3, 15)
    padded = np.concatenate([table, np.full((3, 1), np.nan)], axis=1)
    whole, gaps = resampled_means(table), resampled_means(padded)
    assert whole.mean() == pytest.approx(table.mean(), abs=0.005) and whole.std() == pytest.approx(gaps.std(), rel=0.1)
    one_gap = table.copy()
    one_gap[0, 0] = np.nan
    assert np.abs(resampled_means(one_gap) - whole).max() < 0.1


def test_holm_is_the_step_down_method() -> None:
    """By hand: 4 known p-values; each times how many are not smaller, never below an earlier one, at most 1."""
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx([0.03, None, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == [] and holm([None]) == [None]

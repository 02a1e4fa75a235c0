"""Paired tests: against closed forms, scipy, and simulated nothing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from cellseg.metrics.significance import FEWEST, corrected_t_test, paired_test


def named(values: list[float]) -> dict[str, float]:
    return {f"i{number}": value for number, value in enumerate(values)}


def zeros(values: list[float]) -> dict[str, float]:
    return named([0.0] * len(values))


def test_all_pairs_better_is_two_of_all_sign_flips() -> None:
    values = [0.1, 0.2, 0.3, 0.15, 0.25, 0.05, 0.01]
    found = paired_test(named(values), zeros(values))
    assert found.n == 7 and found.remark == ""
    assert found.difference == pytest.approx(np.mean(values))
    assert found.p == pytest.approx(2 / 2**7)
    turned = paired_test(zeros(values), named(values))
    assert turned.p == found.p and turned.difference == -found.difference
    assert (turned.low, turned.high) == (-found.high, -found.low)


def test_p_counts_the_sign_flips() -> None:
    values = np.random.default_rng(3).normal(0.05, 0.1, 9)
    flips = np.array(list(itertools.product((-1, 1), repeat=9)))
    means = np.abs((flips * values).mean(1))
    expected = np.mean(means >= abs(values.mean()) - 1e-12)
    assert paired_test(named(list(values)), zeros(list(values))).p == pytest.approx(expected)


def test_many_pairs_are_drawn_by_the_seed_and_near_the_t_test() -> None:
    values = list(np.random.default_rng(5).normal(0.05, 0.15, 40))
    found = paired_test(named(values), zeros(values))
    assert found == paired_test(named(values), zeros(values))
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)


def test_the_interval_is_students() -> None:
    values = [0.1, 0.2, -0.1, 0.3]
    found = paired_test(named(values), zeros(values))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_frames_of_a_movie_are_one_pair() -> None:
    """A hundred frames of each of six movies are six observations, and not six hundred."""
    rng = np.random.default_rng(0)
    a, groups = {}, {}
    for movie in range(6):
        shift = rng.normal(0, 0.1)
        for frame in range(100):
            a[f"m{movie}#{frame}"] = shift + rng.normal(0, 0.01)
            groups[f"m{movie}#{frame}"] = f"m{movie}"
    b = dict.fromkeys(a, 0.0)
    found = paired_test(a, b, groups)
    assert found.n == 6 and found.p >= 2 / 2**6
    assert paired_test(a, b).n == 600


def test_too_few_pairs_give_no_p() -> None:
    for count in range(FEWEST):
        found = paired_test(named([0.5] * count), zeros([0.5] * count))
        assert math.isnan(found.p) and f"{count} pair" in found.remark and "6 at" in found.remark
        assert found.n == count
    assert math.isnan(paired_test({}, {}).difference)
    assert math.isnan(paired_test(named([0.5]), zeros([0.5])).low)


def test_pairs_without_a_score_are_left_out() -> None:
    values = [0.1, math.nan, 0.3, 0.2, 0.1, 0.2, 0.4]
    found = paired_test(named(values), zeros(values))
    assert found.n == 6 and found.p == pytest.approx(2 / 2**6)


def test_equal_scores() -> None:
    found = paired_test(named([0.5] * 8), named([0.5] * 8))
    assert found.p == 1 and found.difference == 0 and found.remark == "no pair differs"
    values = [0.1, 0.2] + [0.0] * 8
    found = paired_test(named(values), zeros(values))
    assert found.p == pytest.approx(0.5) and "only 2 of 10 pairs differ" in found.remark


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        paired_test({"a": 1.0}, {"b": 1.0})


def test_nothing_is_found_where_there_is_nothing() -> None:
    """Of 300 comparisons of the same model with itself, about one in twenty has p < 0.05."""
    rng = np.random.default_rng(1)
    ps = []
    for _ in range(300):
        values = list(rng.normal(0, 1, 10))
        ps.append(paired_test(named(values), zeros(values)).p)
    assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.09


def test_folds_against_the_formula() -> None:
    values = [0.02, 0.05, -0.01, 0.04, 0.03]
    found = corrected_t_test(values, [80] * 5, [20] * 5)
    spread = math.sqrt((1 / 5 + 20 / 80) * np.var(values, ddof=1))
    expected = 2 * stats.t.sf(np.mean(values) / spread, 4)
    assert found.p == pytest.approx(expected) and found.n == 5
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, 4) * spread)
    assert found.p > stats.ttest_1samp(values, 0).pvalue, "overlapping training sets weigh less"
    assert found.p > corrected_t_test(values, [95] * 5, [5] * 5).p


def test_folds_that_cannot_be_tested() -> None:
    one = corrected_t_test([0.1], [8], [2])
    assert math.isnan(one.p) and "1 fold cannot be tested" in one.remark
    same = corrected_t_test([0.25, 0.25], [8, 8], [2, 2])
    assert math.isnan(same.p) and "by the same" in same.remark
    assert corrected_t_test([0.0, 0.0], [8, 8], [2, 2]).p == 1
    lost = corrected_t_test([0.1, math.nan, 0.2], [8] * 3, [2] * 3)
    assert lost.n == 2 and lost.p < 1
    with pytest.raises(ValueError, match="Each fold"):
        corrected_t_test([0.1], [0], [2])
    with pytest.raises(ValueError, match="Each fold"):
        corrected_t_test([0.1, 0.2], [8], [2])

"""Spread, intervals, tests and Holm, against SciPy, against numbers computed by hand and by simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from sam2_3dmed_jax.metrics.statistics import (
    Estimate,
    estimate,
    holm,
    interval,
    over_seeds,
    smallest_wilcoxon_p,
    spread,
    t_test,
    wilcoxon,
)

NAN = math.nan


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def difference(one: np.ndarray, other: np.ndarray, matched: bool = False) -> Estimate:
    terms = [(1.0, one), (-1.0, other)]
    result = estimate([terms] if matched else [[term] for term in terms])
    assert result is not None
    return result


def test_with_one_seed_the_spread_is_over_its_cases():
    result = spread(column(0.5, NAN, 0.9, 0.7, 0.8))
    assert result["mean"] == pytest.approx(0.725) and result["n"] == 4
    assert result["sd"] == pytest.approx(np.std([0.5, 0.9, 0.7, 0.8], ddof=1))
    assert (result["q1"], result["median"], result["q3"]) == pytest.approx((0.65, 0.75, 0.825))
    assert "sd_seeds" not in result and "sd_folds" not in result


def test_cases_without_values_have_no_mean_and_one_case_has_no_spread():
    empty = spread(column(NAN, NAN))
    assert empty["mean"] is None and empty["median"] is None and empty["n"] == 0
    alone = spread(column(0.5))
    assert alone["mean"] == 0.5 and alone["sd"] is None


def test_spreads_over_cases_seeds_and_folds_are_kept_apart():
    values = np.array([[0.2, 0.4], [0.6, 0.8], [0.4, NAN]])
    result = spread(values, ["0", "0", "1"])
    assert result["mean"] == pytest.approx((0.3 + 0.7 + 0.4) / 3)  # a case is the mean over its seeds
    assert result["sd"] == pytest.approx(np.std([0.3, 0.7, 0.4], ddof=1))
    assert result["sd_seeds"] == pytest.approx(np.std([0.4, 0.6], ddof=1))
    assert result["sd_folds"] == pytest.approx(np.std([0.5, 0.4], ddof=1))
    assert over_seeds(values).tolist() == pytest.approx([0.3, 0.7, 0.4])


def test_with_one_seed_the_interval_and_p_value_are_those_of_the_paired_t_test():
    one, other = np.random.default_rng(1).beta(5, 2, (2, 12))
    theirs = stats.ttest_rel(one, other)
    result = difference(one[:, None], other[:, None])
    assert t_test(result) == pytest.approx(theirs.pvalue) and result.freedom == pytest.approx(11)
    assert interval(result) == pytest.approx(list(theirs.confidence_interval()))
    mean = stats.ttest_1samp(one, 0).confidence_interval()
    assert interval(estimate([[(1.0, one[:, None])]])) == pytest.approx(list(mean))
    assert interval(estimate([[(1.0, one[:, None])]]), (0.69, 0.7)) == [0.69, 0.7]


def test_where_only_seeds_differ_the_p_value_is_that_of_a_t_test_over_seeds():
    one, other = np.random.default_rng(2).normal(size=3), np.random.default_rng(3).normal(1, 3, 5)
    welch = stats.ttest_ind(one, other, equal_var=False)
    result = difference(np.tile(one, (7, 1)), np.tile(other, (7, 1)))
    assert t_test(result) == pytest.approx(welch.pvalue) and result.freedom == pytest.approx(welch.df)
    matched = difference(np.tile(one, (7, 1)), np.tile(other[:3], (7, 1)), matched=True)
    assert t_test(matched) == pytest.approx(stats.ttest_rel(one, other[:3]).pvalue)


def test_the_error_over_cases_and_seeds_is_that_of_the_two_way_analysis_of_variance():
    C, S = 6, 4
    rng = np.random.default_rng(4)
    values = rng.normal(size=(C, S)) + 3 * rng.normal(size=(C, 1)) + 2 * rng.normal(size=(1, S))
    cases, seeds, mean = values.mean(1), values.mean(0), values.mean()
    of_cases = S * sum((case - mean) ** 2 for case in cases) / (C - 1)
    of_seeds = C * sum((seed - mean) ** 2 for seed in seeds) / (S - 1)
    of_rest = sum(
        (values[c, s] - cases[c] - seeds[s] + mean) ** 2 for c, s in itertools.product(range(C), range(S))
    ) / ((C - 1) * (S - 1))
    variance = (of_cases + of_seeds - of_rest) / (C * S)
    squares = of_cases**2 / (C - 1) + of_seeds**2 / (S - 1) + of_rest**2 / ((C - 1) * (S - 1))
    result = estimate([[(1.0, values)]])
    assert result == pytest.approx((mean, math.sqrt(variance), max((variance * C * S) ** 2 / squares, S - 1)))


def test_classes_of_the_same_seeds_vary_together():
    values = np.random.default_rng(5).normal(size=(8, 3))
    alone = estimate([[(1.0, values)]])
    together = estimate([[(0.5, values), (0.5, values + 1)]])
    assert alone is not None and together is not None
    assert together == pytest.approx((alone.value + 0.5, alone.error, alone.freedom))


def test_cases_without_a_value_do_not_count_and_a_case_is_scored_by_the_seeds_that_it_has():
    assert estimate([[(1.0, column(0.5, NAN, 0.9, 0.7))]]) == estimate([[(1.0, column(0.5, 0.9, 0.7))]])
    holes = np.array([[0.2, NAN, 0.4], [NAN, 0.6, 0.8], [0.1, 0.2, 0.3]])
    result = estimate([[(1.0, holes)]])
    assert result is not None and result.value == pytest.approx((0.3 + 0.7 + 0.2) / 3)
    assert estimate([[(1.0, column(NAN, NAN))]]) is None


def test_without_variation_there_is_no_interval_and_no_test():
    alone, equal = (estimate([[(1.0, column(*values))]]) for values in ((0.5,), (0.5, 0.5)))
    assert alone is not None and math.isnan(alone.error) and interval(alone) is None is t_test(alone)
    assert interval(equal) is None is t_test(equal)
    assert t_test(difference(column(0.1, 0.7), column(0.1, 0.7))) == 1.0


def test_wilcoxon_is_exact_for_few_cases_and_equals_scipy_for_many():
    assert wilcoxon(np.array([1.0, 2, 3, 4, 5, 6])) == pytest.approx(2 / 2**6)
    assert wilcoxon(np.array([1.0, 2, 3])) == pytest.approx(0.25)  # three cannot reach 5 %
    differences = np.random.default_rng(0).normal(0.3, 1, 60)
    assert wilcoxon(differences) == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert wilcoxon(np.zeros(4)) == 1.0 and wilcoxon(np.array([])) is None


@pytest.mark.parametrize("cases", [5, 20, 50])
def test_wilcoxon_without_ties_equals_scipys_exact_test_up_to_50_cases(cases: int):
    differences = np.random.default_rng(cases).normal(0.2, 1, cases)
    exact = stats.wilcoxon(differences, method="exact").pvalue
    assert wilcoxon(differences) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("pairs", [1, 3, 5, 6, 12])
def test_the_smallest_p_value_is_scipys_for_differences_of_equal_sign(pairs: int):
    expected = stats.wilcoxon(np.arange(1.0, pairs + 1), method="exact").pvalue
    assert smallest_wilcoxon_p(pairs) == pytest.approx(expected)


def test_wilcoxon_with_ties_equals_the_count_over_all_signs():
    differences = np.array([0.3, 0.3, -0.1, 0.1, 0.1 + 1e-16, -0.2, 0.5, 0.5, 0.0])
    ranks = stats.rankdata(np.round(np.abs(differences[:-1]), 9))
    total = ranks[differences[:-1] > 0].sum()
    sums = np.array([ranks @ signs for signs in itertools.product((0, 1), repeat=len(ranks))])
    expected = 2 * min((sums <= total + 1e-9).mean(), (sums >= total - 1e-9).mean())
    assert wilcoxon(differences) == pytest.approx(expected)
    many = np.random.default_rng(1).normal(0.2, 1, 51)
    assert wilcoxon(many) == pytest.approx(stats.wilcoxon(many, method="approx").pvalue)


@pytest.mark.long
@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize(("cases", "seeds"), [(10, 3), (40, 3), (10, 6), (40, 6)])
@pytest.mark.parametrize("noise", [(1.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.3, 1.0, 0.3)])  # SD: cases, seeds, residuals
def test_simulated_error_and_coverage_are_about_nominal(
    matched: bool, cases: int, seeds: int, noise: tuple[float, float, float]
):
    rng = np.random.default_rng(0)
    rejected, rejected_over_cases, covered, draws = 0, 0, 0, 500
    for _ in range(draws):
        one, other = (
            noise[0] / math.sqrt(2) * rng.normal(size=(cases, 1))
            + noise[1] * rng.normal(size=(1, seeds))
            + noise[2] * rng.normal(size=(cases, seeds))
            for _ in range(2)
        )
        rejected += (t_test(difference(one, other, matched)) or 0) < 0.05
        rejected_over_cases += (wilcoxon(over_seeds(one) - over_seeds(other)) or 0) < 0.05
        low, high = interval(estimate([[(1.0, one)]])) or (0, 0)
        covered += low <= 0 <= high
    print(
        f"error {rejected / draws:.3f}, of Wilcoxon {rejected_over_cases / draws:.3f}; coverage {covered / draws:.3f}"
    )
    # Nominal: 0.05 and 0.95, with standard errors of 0.01. Satterthwaite's approximation adds up to 0.03.
    assert rejected / draws < 0.11 and covered / draws > 0.89
    if noise[1]:  # the reason for this test: one over case means takes the noise between seeds for a difference
        assert rejected_over_cases / draws > 0.2


def test_holm_equals_values_computed_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.4]) == [0.8, None, 0.8]
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []

"""Spread, intervals, Wilcoxon and Holm, against SciPy and against numbers computed by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from sam2_3dmed_jax.metrics.statistics import bootstrap_means, holm, interval, over_seeds, spread, wilcoxon

NAN = math.nan


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


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


def test_a_bootstrap_over_cases_equals_scipys_within_its_noise():
    values = np.random.default_rng(1).beta(5, 2, 40)
    result = interval(bootstrap_means([values[:, None]])[:, 0])
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", random_state=2)
    assert result == pytest.approx(list(theirs.confidence_interval), abs=0.003)  # a twentieth of the interval
    assert result[0] < values.mean() < result[1]


def test_the_same_seed_draws_the_same_and_arrays_draw_the_same_cases():
    values = np.random.default_rng(0).random((9, 1))
    one, other = bootstrap_means([values, values + 1]).T
    assert np.allclose(other, one + 1) and np.array_equal(one, bootstrap_means([values])[:, 0])
    assert not np.array_equal(one, bootstrap_means([values], seed=1)[:, 0])


def test_cases_without_a_value_are_drawn_and_do_not_count():
    samples = bootstrap_means([column(0.5, NAN, NAN)], draws=200)[:, 0]
    assert set(np.unique(samples[~np.isnan(samples)])) == {0.5} and np.isnan(samples).any()
    assert interval(samples) is None


def test_seeds_are_drawn_for_all_cases_at_once():
    # Two seeds that differ by 0.4 on every case: a sample's mean is the mean of its two drawn seeds.
    values = np.array([[0.2, 0.6]] * 5)
    samples = bootstrap_means([values], draws=4000)[:, 0]
    shares = [np.isclose(samples, level).mean() for level in (0.2, 0.4, 0.6)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.04)  # five standard errors
    holes = np.array([[0.2, NAN], [NAN, 0.6]])  # a case is scored by the seeds that it has
    assert set(np.round(np.unique(bootstrap_means([holes], draws=500)), 9).tolist()) >= {0.2, 0.4, 0.6}


def test_wilcoxon_is_exact_for_few_cases_and_equals_scipy_for_many():
    assert wilcoxon(np.array([1.0, 2, 3, 4, 5, 6])) == pytest.approx(2 / 2**6)
    assert wilcoxon(np.array([1.0, 2, 3])) == pytest.approx(0.25)  # three cannot reach 5 %
    differences = np.random.default_rng(0).normal(0.3, 1, 60)
    assert wilcoxon(differences) == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert wilcoxon(np.zeros(4)) == 1.0 and wilcoxon(np.array([])) is None


def test_holm_equals_values_computed_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.4]) == [0.8, None, 0.8]
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []

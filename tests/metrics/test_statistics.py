"""Spread, intervals, Wilcoxon and Holm, against SciPy and against numbers worked by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from sam2_3dmed_jax.metrics.statistics import bootstrap_means, holm, interval, over_seeds, spread, wilcoxon

NAN = math.nan


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def test_the_spread_of_one_seed_is_that_of_its_cases():
    found = spread(column(0.5, NAN, 0.9, 0.7, 0.8))
    assert found["mean"] == pytest.approx(0.725) and found["n"] == 4
    assert found["sd"] == pytest.approx(np.std([0.5, 0.9, 0.7, 0.8], ddof=1))
    assert (found["q1"], found["median"], found["q3"]) == pytest.approx((0.65, 0.75, 0.825))
    assert "sd_seeds" not in found and "sd_folds" not in found


def test_what_has_no_value_has_no_mean_and_one_case_no_spread():
    empty = spread(column(NAN, NAN))
    assert empty["mean"] is None and empty["median"] is None and empty["n"] == 0
    alone = spread(column(0.5))
    assert alone["mean"] == 0.5 and alone["sd"] is None


def test_spreads_over_cases_seeds_and_folds_are_kept_apart():
    values = np.array([[0.2, 0.4], [0.6, 0.8], [0.4, NAN]])
    found = spread(values, ["0", "0", "1"])
    assert found["mean"] == pytest.approx((0.3 + 0.7 + 0.4) / 3)  # a case is the mean over its seeds
    assert found["sd"] == pytest.approx(np.std([0.3, 0.7, 0.4], ddof=1))
    assert found["sd_seeds"] == pytest.approx(np.std([0.4, 0.6], ddof=1))
    assert found["sd_folds"] == pytest.approx(np.std([0.5, 0.4], ddof=1))
    assert over_seeds(values).tolist() == pytest.approx([0.3, 0.7, 0.4])


def test_a_bootstrap_over_cases_equals_scipys_within_its_noise():
    values = np.random.default_rng(1).beta(5, 2, 40)
    found = interval(bootstrap_means([values[:, None]])[:, 0])
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", random_state=2)
    assert found == pytest.approx(list(theirs.confidence_interval), abs=0.003)  # a twentieth of the interval
    assert found[0] < values.mean() < found[1]


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
    # Two seeds that differ by 0.4 on every case: a sample's mean is that of its two drawn seeds, whatever the cases.
    values = np.array([[0.2, 0.6]] * 5)
    samples = bootstrap_means([values], draws=4000)[:, 0]
    shares = [np.isclose(samples, level).mean() for level in (0.2, 0.4, 0.6)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.04)  # five standard errors
    holes = np.array([[0.2, NAN], [NAN, 0.6]])  # a case is scored by the seeds that it has
    assert set(np.round(np.unique(bootstrap_means([holes], draws=500)), 9).tolist()) >= {0.2, 0.4, 0.6}


def test_wilcoxon_is_exact_for_few_cases_and_scipys():
    assert wilcoxon(np.array([1.0, 2, 3, 4, 5, 6])) == pytest.approx(2 / 2**6)
    assert wilcoxon(np.array([1.0, 2, 3])) == pytest.approx(0.25)  # three cannot reach 5 %
    differences = np.random.default_rng(0).normal(0.3, 1, 60)
    assert wilcoxon(differences) == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert wilcoxon(np.zeros(4)) == 1.0 and wilcoxon(np.array([])) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.4]) == [0.8, None, 0.8]
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []

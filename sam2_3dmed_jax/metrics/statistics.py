"""Statistics over cases and seeds: spread, intervals and paired tests.

Arrays are `[C, S]`, cases by seeds (training runs), NaN where a value is missing. A case is the mean over its seeds.
Standard deviations over cases, seeds and folds are kept apart, never pooled. Intervals and the primary test come from
a model in which cases and seeds are random and crossed (Baayen et al. 2008), with degrees of freedom for few seeds,
because a test over case means alone takes noise between seeds for a difference of methods. Nothing is drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 95  # per cent of an interval
SIGNIFICANT = 0.05  # largest p value that is called significant
_EXACT = 50  # most cases of the exact signed-rank test
_ROUNDING = 1e-12  # standard errors below this share of the largest value are rounding errors

Interval = list[float] | None


def spread(values: np.ndarray, folds: Sequence[object] = ()) -> dict[str, float | int | None]:
    """Return mean, standard deviations and quartiles of the cases that have a value.

    Args:
        values: `[C, S]`.
        folds: fold of each case; () if all cases are of one fold.

    Returns:
        {"mean", "sd": over cases (n - 1), "median", "q1", "q3": linear between ranks, "n": cases with a value} and,
        with several seeds or folds, "sd_seeds" and "sd_folds": SD (n - 1) of their means. None: no value.
    """
    cases = over_seeds(values)
    scored = cases[~np.isnan(cases)]
    quartiles = np.percentile(scored, (25, 50, 75)) if scored.size else (math.nan,) * 3
    result: dict[str, float | None] = {
        "mean": _number(scored.mean() if scored.size else math.nan),
        "sd": _sd(scored),
        **{name: _number(value) for name, value in zip(("q1", "median", "q3"), quartiles, strict=True)},
    }
    if values.shape[1] > 1:
        result["sd_seeds"] = _sd(over_seeds(values.T))
    if len(set(folds)) > 1:
        means = [over_seeds(cases[None, [f == fold for f in folds]])[0] for fold in dict.fromkeys(folds)]
        result["sd_folds"] = _sd(np.array(means))
    return {**result, "n": int(scored.size)}


def over_seeds(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis, without NaN; NaN where all values are NaN."""
    valid = ~np.isnan(values)
    counts = valid.sum(-1)
    return np.where(counts, np.where(valid, values, 0).sum(-1) / np.maximum(counts, 1), math.nan)


class Estimate(NamedTuple):
    """A mean, or a difference of means, with its uncertainty over random cases and random seeds."""

    value: float
    error: float  # standard error; NaN with fewer than two cases, 0 if nothing varies
    freedom: float  # degrees of freedom (Satterthwaite)


def estimate(groups: Sequence[Sequence[tuple[float, np.ndarray]]]) -> Estimate | None:
    """Return a weighted sum of means over cases, with its standard error over cases and seeds.

    A seed trains one model, which scores every case, so cases and seeds are crossed: a value is the sum of a case
    effect, a seed effect and a residual, all random. The variance of the sum is estimated in closed form:

        s2(case means) / C + sum over groups of s2(seed means) / S - s2(residuals) / (C S)

    which counts the residuals once, but is not less than its first or second term. The degrees of freedom are
    Satterthwaite's (1946), and at least the smallest number of levels minus 1. With one seed, the variance of seeds
    cannot be estimated, and the error covers cases only, as in the paired t-test.

    Args:
        groups: the terms, weight and values `[C, S]` on the same cases (NaN: no value). The terms of one group have the
            same seeds, in the same order; different groups have seeds that were drawn independently. As in
            `over_seeds`, a term is the mean over cases of their means over the seeds that they have.

    Returns:
        None if a term has no value.
    """
    terms = [values for group in groups for _, values in group]
    if any(np.isnan(values).all() for values in terms):
        return None
    cases = np.any([~np.isnan(values).all(-1) for values in terms], axis=0)
    C = int(cases.sum())
    case_means = np.zeros(C)
    seed_variance = residual_variance = squares = 0.0
    fewest = C - 1
    for group in groups:
        seeds = np.any([~np.isnan(values).all(0) for _, values in group], axis=0)
        S = int(seeds.sum())
        parts = np.sum([weight * _contributions(values[cases][:, seeds]) for weight, values in group], axis=0)
        rows = parts.mean(-1)
        case_means += rows
        if S > 1 and C > 1:
            columns = parts.mean(0)
            residuals = parts - rows[:, None] - columns + parts.mean()
            variances = columns.var(ddof=1) / S, (residuals**2).sum() / ((C - 1) * (S - 1) * C * S)
            seed_variance += variances[0]
            residual_variance += variances[1]
            squares += variances[0] ** 2 / (S - 1) + variances[1] ** 2 / ((C - 1) * (S - 1))
            fewest = min(fewest, S - 1)
    value = float(case_means.mean())
    if C < 2:
        return Estimate(value, math.nan, math.nan)
    case_variance = case_means.var(ddof=1) / C
    squares += case_variance**2 / (C - 1)
    variance = max(case_variance + seed_variance - residual_variance, case_variance, seed_variance)
    largest = max(float(np.nanmax(np.abs(values))) for values in terms)
    if math.sqrt(variance) <= _ROUNDING * largest:
        return Estimate(0.0 if abs(value) <= _ROUNDING * largest else value, 0.0, math.nan)
    return Estimate(value, math.sqrt(variance), max(float(variance**2 / squares), float(fewest)))


def interval(mean: Estimate | None, limits: tuple[float, float] = (-math.inf, math.inf)) -> Interval:
    """Return the t interval of an estimate, within the limits of the metric.

    Returns:
        None if the error is not known or 0.
    """
    if mean is None or not mean.error > 0:
        return None
    from scipy import special  # imported here because it is slow to import

    reach = mean.error * float(special.stdtrit(mean.freedom, 0.5 + LEVEL / 200))
    return [max(mean.value - reach, limits[0]), min(mean.value + reach, limits[1])]


def t_test(difference: Estimate | None) -> float | None:
    """Return the two-sided p value of a difference: of the t test that belongs to `interval`.

    Returns:
        None if the error is not known, or 0 although the difference is not; 1 if no case differs.
    """
    if difference is None or math.isnan(difference.error):
        return None
    if difference.error == 0:
        return 1.0 if difference.value == 0 else None
    from scipy import special  # imported here because it is slow to import

    return float(2 * special.stdtr(difference.freedom, -abs(difference.value) / difference.error))


def wilcoxon(differences: np.ndarray) -> float | None:
    """Return the two-sided p value of Wilcoxon's signed-rank test, in which only the cases are random.

    Zeros are left out, as in Wilcoxon's test. With up to 50 remaining cases, the p value is exact, also with ties;
    with more, it comes from SciPy's normal approximation.

    Args:
        differences: `[C]`, of paired cases.

    Returns:
        None without cases, 1 if all differences are zero.
    """
    from scipy import stats  # imported here because it is slow to import

    if not differences.size:
        return None
    # Differences that are equal but for rounding errors are ties.
    scaled = np.round(differences / max(float(np.abs(differences).max()), math.ulp(0)), 12)
    scaled = scaled[scaled != 0]
    if not scaled.size:
        return 1.0
    if scaled.size > _EXACT:
        return float(stats.wilcoxon(scaled, method="approx").pvalue)
    doubled = np.round(2 * stats.rankdata(np.abs(scaled))).astype(int)  # mid-ranks of ties are halves
    chance = np.ones(1)  # of each sum of the doubled ranks of the positive differences, given the ranks
    for rank in doubled:
        chance = np.pad(chance, (0, rank)) / 2 + np.pad(chance, (rank, 0)) / 2
    total = int(doubled[scaled > 0].sum())
    return float(min(1.0, 2 * min(chance[: total + 1].sum(), chance[total:].sum())))


def smallest_wilcoxon_p(pairs: int) -> float:
    """Return the smallest p value that `wilcoxon` can have: 2 / 2^n, of n differences that all have the same sign."""
    return min(1.0, 2.0 ** (1 - pairs))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Return p values with Holm's correction (1979), under which all tests of the family may be judged together.

    The k-th smallest of n is multiplied by n - k + 1, and is not smaller than the corrected ones before it. None stays
    None and does not count.
    """
    known = sorted((value, place) for place, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    least = 0.0
    for rank, (value, place) in enumerate(known):
        least = max(least, min(1.0, value * (len(known) - rank)))
        corrected[place] = least
    return corrected


def _contributions(values: np.ndarray) -> np.ndarray:
    """Return `[C, S]` without NaN, of which the plain mean is the mean over cases of `over_seeds`.

    Without missing values it equals `values`. Otherwise each value differs from the mean in proportion to its weight,
    and a missing one does not differ, so that sums over rows and columns have the right variances.
    """
    valid = ~np.isnan(values)
    means = over_seeds(values)
    scored = ~np.isnan(means)
    mean = means[scored].mean()
    weights = values.size / (scored.sum() * np.maximum(valid.sum(-1, keepdims=True), 1))
    return np.asarray(mean + np.where(valid, values - mean, 0) * weights)


def _sd(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.std(ddof=1)) if values.size > 1 else None


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)

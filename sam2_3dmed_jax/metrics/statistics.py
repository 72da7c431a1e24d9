"""Statistics over cases: spread, bootstrap intervals and paired tests. The unit is the case, averaged over seeds.

Arrays are `[C, S]`, cases by seeds (training runs), NaN where a value is missing. Standard deviations over cases, seeds
and folds are kept apart, never pooled. All randomness comes from a seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DRAWS = 10_000  # bootstrap samples
LEVEL = 95  # per cent of an interval

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


def bootstrap_means(values: Sequence[np.ndarray], seed: int = 0, draws: int = DRAWS) -> np.ndarray:
    """Return means of bootstrap samples: cases are drawn with replacement, and so are the seeds of each sample.

    A seed trains one model, which scores every case. Cases and seeds are therefore crossed, and a sample draws its
    seeds once (the pigeonhole bootstrap, Owen 2007). With one seed this is the bootstrap over cases.

    Args:
        values: `[C, S]` of several classes or methods on the same cases, which a sample draws together; each array has
            its own seeds.
        seed: of the draws.
        draws: number of samples.

    Returns:
        float64 `[draws, len(values)]`; NaN where a sample has no value.
    """
    rng = np.random.default_rng(seed)
    C = len(values[0])
    cases = rng.multinomial(C, np.full(C, 1 / C), draws).astype(float)  # how often each case is drawn
    seeds_of = {
        S: rng.multinomial(S, np.full(S, 1 / S), draws).astype(float) for S in sorted({v.shape[1] for v in values})
    }
    means = np.full((draws, len(values)), math.nan)
    for column, array in enumerate(values):
        valid, filled = (~np.isnan(array)).astype(float), np.nan_to_num(array)
        if array.shape[1] == 1:
            total, weighted = cases @ valid[:, 0], cases @ filled[:, 0]
        else:  # like `over_seeds`: the mean over a case's drawn seeds, then over the drawn cases
            seeds = seeds_of[array.shape[1]]
            counts = seeds @ valid.T
            weight = cases * (counts > 0)
            total = weight.sum(1)
            weighted = (weight * (seeds @ filled.T) / np.maximum(counts, 1)).sum(1)
        np.divide(weighted, total, out=means[:, column], where=total > 0)
    return means


def interval(samples: np.ndarray) -> Interval:
    """Return the percentile interval of bootstrap samples `[draws]`; None if all are equal or none has a value."""
    samples = samples[~np.isnan(samples)]
    if not samples.size or np.ptp(samples) == 0:
        return None
    tail = (100 - LEVEL) / 2
    return [float(value) for value in np.percentile(samples, (tail, 100 - tail))]


def wilcoxon(differences: np.ndarray) -> float | None:
    """Return the two-sided p value of Wilcoxon's signed-rank test.

    It is exact up to 50 cases without ties, otherwise by the normal approximation.

    Args:
        differences: `[C]`, of paired cases; zeros are left out, as in Wilcoxon's test.

    Returns:
        None without cases, 1 if all differences are zero.
    """
    from scipy import stats  # imported here because it is slow to import

    if not differences.size:
        return None
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)


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


def _sd(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.std(ddof=1)) if values.size > 1 else None


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)

"""Numbers over cases: spread, bootstrap intervals, and paired comparison. The unit is the case, averaged over seeds.

Arrays are `[C, S]`, cases by seeds (training runs), NaN where there is no value. SDs over cases, seeds and folds are
kept apart, never pooled. All randomness comes from a seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DRAWS = 10_000  # bootstrap samples
LEVEL = 95  # per cent of an interval

Interval = list[float] | None


def spread(values: np.ndarray, folds: Sequence[object] = ()) -> dict[str, float | int | None]:
    """Mean, SDs and quartiles of what has a value.

    Args:
        values: `[C, S]`.
        folds: of each case; () if there is one.

    Returns:
        {"mean", "sd": over cases (n - 1), "median", "q1", "q3": linear between ranks, "n": cases with a value} and, of
        several seeds or folds, "sd_seeds" and "sd_folds": SD (n - 1) of the mean of each. None: no value.
    """
    cases = over_seeds(values)
    scored = cases[~np.isnan(cases)]
    quartiles = np.percentile(scored, (25, 50, 75)) if scored.size else (math.nan,) * 3
    found: dict[str, float | None] = {
        "mean": _number(scored.mean() if scored.size else math.nan),
        "sd": _sd(scored),
        **{name: _number(value) for name, value in zip(("q1", "median", "q3"), quartiles, strict=True)},
    }
    if values.shape[1] > 1:
        found["sd_seeds"] = _sd(over_seeds(values.T))
    if len(set(folds)) > 1:
        of_fold = [over_seeds(cases[None, [f == fold for f in folds]])[0] for fold in dict.fromkeys(folds)]
        found["sd_folds"] = _sd(np.array(of_fold))
    return {**found, "n": int(scored.size)}


def over_seeds(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what has a value; NaN where nothing has."""
    valid = ~np.isnan(values)
    counts = valid.sum(-1)
    return np.where(counts, np.where(valid, values, 0).sum(-1) / np.maximum(counts, 1), math.nan)


def bootstrap_means(values: Sequence[np.ndarray], seed: int = 0, draws: int = DRAWS) -> np.ndarray:
    """Means of bootstrap samples: cases are drawn with replacement, and so, in each sample, are seeds.

    A seed trains one model, which scores every case: so both are crossed, and a sample draws its seeds once (the
    pigeonhole bootstrap, Owen 2007). With one seed this is the bootstrap over cases.

    Args:
        values: `[C, S]` of several classes or methods on the same cases, which a sample draws together; an array's
            seeds are its own.
        seed: of the draws.
        draws: samples.

    Returns:
        float64 `[draws, len(values)]`; NaN where a sample has no value.
    """
    rng = np.random.default_rng(seed)
    C = len(values[0])
    cases = rng.multinomial(C, np.full(C, 1 / C), draws).astype(float)  # how often each is drawn
    seeds_of = {
        S: rng.multinomial(S, np.full(S, 1 / S), draws).astype(float) for S in sorted({v.shape[1] for v in values})
    }
    means = np.full((draws, len(values)), math.nan)
    for at, array in enumerate(values):
        valid, filled = (~np.isnan(array)).astype(float), np.nan_to_num(array)
        if array.shape[1] == 1:
            total, weighted = cases @ valid[:, 0], cases @ filled[:, 0]
        else:  # as `over_seeds`: the mean over a case's drawn seeds, then over the drawn cases
            seeds = seeds_of[array.shape[1]]
            counts = seeds @ valid.T
            weight = cases * (counts > 0)
            total = weight.sum(1)
            weighted = (weight * (seeds @ filled.T) / np.maximum(counts, 1)).sum(1)
        np.divide(weighted, total, out=means[:, at], where=total > 0)
    return means


def interval(samples: np.ndarray) -> Interval:
    """The percentile interval of bootstrap samples `[draws]`; None if all are alike or there are none."""
    samples = samples[~np.isnan(samples)]
    if not samples.size or np.ptp(samples) == 0:
        return None
    tail = (100 - LEVEL) / 2
    return [float(value) for value in np.percentile(samples, (tail, 100 - tail))]


def wilcoxon(differences: np.ndarray) -> float | None:
    """Two-sided p of the signed-rank test: exact up to 50 cases without ties, otherwise by the normal approximation.

    Args:
        differences: `[C]`, of paired cases; zeros are left out, as Wilcoxon did.

    Returns:
        None if there is no case; 1 if no two differ.
    """
    from scipy import stats  # takes a while to import

    if not differences.size:
        return None
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's correction (1979): p values under which all of the family may be judged together.

    The k-th smallest of n is multiplied by n - k + 1, and is no smaller than those before it. None stays None and does
    not count.
    """
    known = sorted((value, at) for at, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    least = 0.0
    for rank, (value, at) in enumerate(known):
        least = max(least, min(1.0, value * (len(known) - rank)))
        corrected[at] = least
    return corrected


def _sd(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.std(ddof=1)) if values.size > 1 else None


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)

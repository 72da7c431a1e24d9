"""The histogram of logits by side of the reference, and the temperature that is fitted to it."""

import numpy as np
import pytest
from scipy import special

from sam2_3dmed_jax.training.calibration import BINS, logit_counts, temperature_of


def test_valid_pixels_are_counted_by_logit_and_side():
    logits = np.array([[-1024.0, -0.01, 0.01, 0.02, 40.0, 5.0]], np.float32)
    inside = np.array([[0, 0, 1, 0, 1, 1]], bool)
    counts = np.asarray(logit_counts(logits, inside, np.array([[1, 1, 1, 1, 1, 0]], bool)))
    middle = BINS // 2
    expected = {(0, 0): 1, (middle - 1, 0): 1, (middle, 1): 1, (middle, 0): 1, (BINS - 1, 1): 1}
    assert {(int(b), int(side)): int(counts[b, side]) for b, side in np.argwhere(counts)} == expected


def test_the_temperature_of_a_histogram_is_the_one_of_its_pixels():
    rng = np.random.default_rng(0)
    calibrated = rng.normal(0, 2, 200_000).astype(np.float32)
    inside = rng.random(calibrated.size) < special.expit(calibrated)
    counts = np.asarray(logit_counts(2.5 * calibrated, inside, np.ones(inside.shape, bool)))
    # The standard error of the fit to so many pixels is below 0.01.
    assert temperature_of(counts) == pytest.approx(2.5, abs=0.04)

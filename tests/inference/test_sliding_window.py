"""Sliding windows: positions, weights, and the identity as the function of a window."""

import numpy as np
import pytest

from sam2_3dmed_jax.inference.sliding_window import slide, window_starts, window_weights


@pytest.mark.parametrize("shape", [(8, 8, 8), (3, 5, 2), (9, 20, 33), (30, 4, 8)])
def test_sliding_windows_of_an_identity_return_the_volume(shape):
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    result = slide(lambda patch: np.stack([patch, -patch], -1), volume, (8, 8, 8))
    np.testing.assert_allclose(result, [volume, -volume], atol=1e-5)  # weighted sums of up to 8 float32 values


def test_windows_reach_both_ends_and_overlap_by_at_least_half():
    assert window_starts(8, 8) == window_starts(5, 8) == [0]
    assert window_starts(20, 8) == [0, 4, 8, 12]
    starts = window_starts(21, 8)
    assert starts[0] == 0 and starts[-1] == 13 and max(np.diff(starts)) <= 4


def test_window_weights_are_largest_in_the_middle_and_never_zero():
    weights = window_weights((8, 64, 9))
    assert weights.shape == (8, 64, 9) and weights.max() == 1 and weights.min() > 0
    assert weights[4, 32, 4] == 1 and weights[0, 0, 0] < 1e-6

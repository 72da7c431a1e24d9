"""Tolerances of parity with their reasons, and a check that the reference's output is informative.

Float32 sums in a different order differ by about 1e-7 of the terms, and this adds up over layers and slices. Measured:
up to 1.3e-6 for features (2.5e-5 after the sharp memory attention) and 3.5e-5 for logits after 12 slices. The
tolerances are the project's promise. With several objects, an error must also be at most a twentieth of the effect of
memory on the last slice, so that propagation without any effect of memory never passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.parity.scenarios import Tracked
from tests.parity.stages import Stages

FEATURES = 1e-4  # of the reference's largest magnitude; for a single stage, so errors do not add up
LOGITS = 1e-3  # of the reference's largest magnitude: each of 12 slices builds on the errors of those before
FAR = 20  # the effect of memory on the last slice is at least this many times the error
SCORES = 1e-3  # absolute: an object score decides presence at 0, and is of order 1
SAME_SIGN = 0.9999  # the sign of logits within rounding of 0 may differ
SAME_SIGN_BFLOAT16 = 0.99  # 8 bits of mantissa: 4e-3 of each number
GATED = -1000.0  # the reference writes -1024 over masks of absent objects, which must not count as agreement


@dataclass(frozen=True)
class Agreement:
    """The differences of two results."""

    error: float  # largest, relative to the reference's largest magnitude
    same_sign: float  # fraction of pixels
    score_error: float  # largest, absolute

    def __str__(self) -> str:
        return f"error {self.error:.1e}, same sign {100 * self.same_sign:.4f} %, score error {self.score_error:.1e}"


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """Return the largest difference, divided by the reference's largest magnitude."""
    assert ours.shape == reference.shape, f"shapes differ: {ours.shape} and {reference.shape}"
    assert np.isfinite(reference).all(), "the reference is not finite"
    error = float(np.abs(ours.astype(np.float32) - reference).max() / np.abs(reference).max())
    return error if np.isfinite(error) else float("inf")


def agreement(ours: Tracked, reference: Tracked) -> Agreement:
    """Compare whole propagations; the error of each slice is relative to the largest logit of that slice.

    So neither the 10 of a mask prompt nor the -1024 of an absent object makes the errors of other slices look small.
    """
    assert ours.mask_logits.shape == reference.mask_logits.shape
    gated = reference.mask_logits < GATED
    largest = np.abs(np.where(gated, 0, reference.mask_logits)).max((-1, -2))
    difference = np.where(gated, 0, ours.mask_logits - reference.mask_logits)
    error = (np.abs(difference).max((-1, -2)) / np.maximum(largest, 1e-6)).max()
    gates_agree = np.array_equal(ours.mask_logits < GATED, gated) and np.isfinite(ours.mask_logits).all()
    return Agreement(
        error=float(error) if gates_agree else float("inf"),
        same_sign=float(((ours.mask_logits > 0) == (reference.mask_logits > 0)).mean()),
        score_error=float(np.abs(ours.object_score_logits - reference.object_score_logits).max()),
    )


def assert_same_stages(ours: Stages, reference: Stages) -> None:
    """Assert that every stage agrees within `FEATURES`; the message lists all stages that do not."""
    assert reference.keys() <= ours.keys()
    errors = {name: relative_error(ours[name], value) for name, value in reference.items()}
    print("\n" + "\n".join(f"{name}: {error:.1e}" for name, error in errors.items()))
    assert not {name: error for name, error in errors.items() if not error <= FEATURES}


def assert_same_propagation(ours: Tracked, reference: Tracked) -> None:
    """Assert that masks and scores agree in float32, much closer than propagation without memory would."""
    memory_effect = assert_informative(reference)
    result = agreement(ours, reference)
    print(f"\n{result}")
    assert result.error <= min(LOGITS, memory_effect / FAR), result
    assert result.same_sign >= SAME_SIGN, result
    assert result.score_error <= SCORES, result


def assert_informative(reference: Tracked) -> float:
    """Assert that the reference has both signs, objects that are present, and objects that differ.

    Returns:
        The effect of memory: the difference of two objects on the last slice, divided by their largest logit; infinity
        for a single object.
    """
    logits = reference.mask_logits
    assert np.isfinite(logits).all()
    assert (logits > GATED).mean() > 0.5, "most masks are gated to -1024"
    inside = (logits[logits > GATED] > 0).mean()
    assert 0.02 < inside < 0.98, f"{inside:.1%} of pixels are inside"
    # Away from the prompt, objects differ only by their memories.
    first = logits[0]
    if len(first) == 1:
        return float("inf")
    apart = np.abs(first[0, -1] - first[1, -1]).max() / np.abs(first[:, -1]).max()
    return float(apart)

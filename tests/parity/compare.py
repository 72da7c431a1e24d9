"""What "equal" means, with the reason of each tolerance, and that the reference's own output can tell.

Float32 sums in another order differ by some 1e-7 of the terms; layers and slices pile that up. Measured: up to
1.3e-6 for features (2.5e-5 after the sharp memory attention) and 3.5e-5 for logits after 12 slices. The tolerances are
the project's promise; where there are several objects, an error is also at most a twentieth of what memory does to the
last slice, so that a walk whose memory has no say never passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.parity.scenarios import Tracked
from tests.parity.stages import Stages

FEATURES = 1e-4  # of the reference's largest magnitude; one stage on its own, so errors do not add up
LOGITS = 1e-3  # of the reference's largest magnitude: each of 12 slices builds on the errors of those before
FAR = 20  # what memory does to the last slice is at least so many times the error
SCORES = 1e-3  # absolute: an object score decides presence at 0, and is of order 1
SAME_SIGN = 0.9999  # pixels whose logit lies within rounding of 0 may fall on either side
SAME_SIGN_BFLOAT16 = 0.99  # 8 bits of mantissa: 4e-3 of each number; stated, not hidden
GATED = -1000.0  # the reference writes -1024 over masks of absent objects, which must not stand for agreement


@dataclass(frozen=True)
class Agreement:
    """How far apart two results are."""

    error: float  # largest, relative to the reference's largest magnitude
    same_sign: float  # fraction of pixels
    score_error: float  # largest, absolute

    def __str__(self) -> str:
        return f"error {self.error:.1e}, same sign {100 * self.same_sign:.4f} %, score error {self.score_error:.1e}"


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference over the reference's largest magnitude."""
    assert ours.shape == reference.shape, f"shapes differ: {ours.shape} and {reference.shape}"
    assert np.isfinite(reference).all(), "the reference is not finite"
    error = float(np.abs(ours.astype(np.float32) - reference).max() / np.abs(reference).max())
    return error if np.isfinite(error) else float("inf")


def agreement(ours: Tracked, reference: Tracked) -> Agreement:
    """Compare whole walks; the error of each slice counts against that slice's own largest logit.

    So neither a mask prompt's 10 nor the -1024 of an absent object makes the errors of other slices look small.
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
    """Every stage within `FEATURES`; all that are not are listed."""
    assert reference.keys() <= ours.keys()
    errors = {name: relative_error(ours[name], value) for name, value in reference.items()}
    print("\n" + "\n".join(f"{name}: {error:.1e}" for name, error in errors.items()))
    assert not {name: error for name, error in errors.items() if not error <= FEATURES}


def assert_same_walk(ours: Tracked, reference: Tracked) -> None:
    """Masks and scores of a scenario agree in float32, far closer than a walk without memory would."""
    memory = assert_telling(reference)
    found = agreement(ours, reference)
    print(f"\n{found}")
    assert found.error <= min(LOGITS, memory / FAR), found
    assert found.same_sign >= SAME_SIGN, found
    assert found.score_error <= SCORES, found


def assert_telling(reference: Tracked) -> float:
    """The reference can tell right from wrong: both signs, objects present, slices and objects that differ.

    Returns:
        What memory does: the difference of two objects on the last slice, over their largest logit; of one, infinity.
    """
    logits = reference.mask_logits
    assert np.isfinite(logits).all()
    assert (logits > GATED).mean() > 0.5, "most masks are gated to -1024"
    inside = (logits[logits > GATED] > 0).mean()
    assert 0.02 < inside < 0.98, f"{inside:.1%} of pixels are inside"
    # Away from the prompt only the memory tells objects apart.
    first = logits[0]
    if len(first) == 1:
        return float("inf")
    apart = np.abs(first[0, -1] - first[1, -1]).max() / np.abs(first[:, -1]).max()
    return float(apart)

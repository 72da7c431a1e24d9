"""Comparison with stored outputs of Meta's predictor, without torch: NumPy generates the weights, which are converted.

The tolerances and their reasons are in `compare.py`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity import compare, generated, ours, stored

pytestmark = pytest.mark.slow


# The first preset has the same tests against Meta itself in CI.
@pytest.fixture(scope="module", params=[pytest.param(stored.PRESETS[0], marks=pytest.mark.long), *stored.PRESETS[1:]])
def preset(request: pytest.FixtureRequest) -> str:
    """Run all tests of a preset in a row, so that they share its compilations."""
    return str(request.param)


@pytest.fixture(scope="module")
def provenance(preset: str) -> dict[str, Any]:
    """Return the origin of the stored outputs, with the names and shapes of the reference's tensors."""
    return stored.provenance(preset)


@pytest.fixture(scope="module")
def reference(preset: str) -> dict[str, np.ndarray]:
    """Return the stored outputs."""
    return stored.reference(preset)


@pytest.fixture(scope="module")
def slices() -> np.ndarray:
    """Return the volume of all stored propagations."""
    return generated.slices(stored.DEPTH, stored.SIZE, stored.SEED)


def test_the_stored_file_has_the_digest_in_its_provenance(preset: str, provenance: dict[str, Any]) -> None:
    assert hashlib.sha256((stored.DATA / f"{preset}.npz").read_bytes()).hexdigest() == provenance["sha256"]
    assert provenance["tolerance"] == {
        "stages": compare.FEATURES,
        "mask_logits": compare.LOGITS,
        "object_scores": compare.SCORES,
        "same_sign": compare.SAME_SIGN,
    }


def test_numpy_generates_the_weights_and_slices_of_the_reference(provenance: dict[str, Any]) -> None:
    assert stored.inputs_digest(provenance["tensors"]) == provenance["inputs_sha256"]


def test_every_stage_agrees_with_the_stored_reference(
    preset: str, reference: dict[str, np.ndarray], tmp_path: Path
) -> None:
    model = ours.load(stored.convert_generated(preset, 1.0, tmp_path), stored.SIZE)
    errors = stored.stage_errors(ours.stages(model, stored.SEED), reference)
    print("\n" + "\n".join(f"{name}: {error:.1e}" for name, error in errors.items()))
    assert not {name: error for name, error in errors.items() if not error <= compare.FEATURES}


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.long if name == "mask_prompt" else ()) for name in stored.CASES]
)
def test_propagation_agrees_with_the_stored_reference(
    case: str, preset: str, reference: dict[str, np.ndarray], slices: np.ndarray, tmp_path: Path
) -> None:
    presence, scenario = stored.CASES[case].presence, stored.CASES[case].scenario
    model = ours.load(stored.convert_generated(preset, presence, tmp_path), stored.SIZE)
    agreement = stored.agreement(case, ours.Video(model, slices).track(scenario), reference)
    print(f"\n{agreement}")
    assert agreement.error <= compare.LOGITS, agreement
    assert agreement.same_sign >= compare.SAME_SIGN, agreement
    assert agreement.score_error <= compare.SCORES, agreement


def test_stored_objects_come_and_go(reference: dict[str, np.ndarray]) -> None:
    absent = (reference["objects_come_and_go/logits"] < compare.GATED).all((-1, -2))
    assert 0.1 < absent.mean() < 0.9
    # The scores are so far from 0 that rounding does not change which objects are present.
    assert np.abs(reference["objects_come_and_go/scores"]).min() > 1e-4

"""Comparison with stored outputs of Meta's predictor, without torch: NumPy generates the weights, which are converted.

The tolerances and their reasons are in `compare.py`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.parity import compare, generated, ours, stored
from weights_conversion.convert import convert_checkpoint

pytestmark = pytest.mark.slow


# The first preset has the same tests against Meta itself in CI.
@pytest.fixture(scope="module", params=[pytest.param(stored.PRESETS[0], marks=pytest.mark.long), *stored.PRESETS[1:]])
def preset(request: pytest.FixtureRequest) -> str:
    """Run all tests of a preset in a row, so that they share its compilations."""
    return str(request.param)


@pytest.fixture(scope="module")
def provenance(preset: str) -> dict[str, Any]:
    """Return the origin of the stored outputs, with the names and shapes of the reference's tensors."""
    return json.loads((stored.DATA / f"{preset}.json").read_text())


@pytest.fixture(scope="module")
def reference(preset: str) -> dict[str, np.ndarray]:
    """Return the stored outputs."""
    with np.load(stored.DATA / f"{preset}.npz") as arrays:
        return dict(arrays)


def converted(preset: str, provenance: dict[str, Any], presence: float, folder: Path) -> Any:
    """Return our model with the generated weights, converted from a file in Meta's layout."""
    source, checkpoint = folder / "official.safetensors", folder / f"{preset} {presence}"
    save_file(generated.weights(provenance["tensors"], stored.SEED, presence), source)
    assert convert_checkpoint(source, checkpoint).preset == preset
    return ours.load(checkpoint, stored.SIZE)


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
    preset: str, provenance: dict[str, Any], reference: dict[str, np.ndarray], tmp_path: Path
) -> None:
    stages = ours.stages(converted(preset, provenance, 1.0, tmp_path), stored.SEED)
    errors = {}
    for name, value in stages.items():
        theirs, largest = reference[f"stage/{name}"], reference[f"stage/{name}/largest"]
        errors[name] = float(np.abs(stored.sample(value) - theirs).max() / largest)
    print("\n" + "\n".join(f"{name}: {error:.1e}" for name, error in errors.items()))
    assert not {name: error for name, error in errors.items() if not error <= compare.FEATURES}


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.long if name == "mask_prompt" else ()) for name in stored.CASES]
)
def test_propagation_agrees_with_the_stored_reference(
    case: str,
    preset: str,
    provenance: dict[str, Any],
    reference: dict[str, np.ndarray],
    slices: np.ndarray,
    tmp_path: Path,
) -> None:
    model = converted(preset, provenance, stored.CASES[case].presence, tmp_path)
    tracked = ours.Video(model, slices).track(stored.CASES[case].scenario)
    packed = stored.pack(case, tracked)
    logits, theirs = packed[f"{case}/logits"], reference[f"{case}/logits"]
    gated = theirs < compare.GATED
    assert np.array_equal(logits < compare.GATED, gated)
    largest = np.maximum(reference[f"{case}/largest"], 1e-6)[..., None, None]
    error = (np.abs(np.where(gated, 0, logits - theirs)) / largest).max()
    pixels = tracked.mask_logits.size
    signs = [np.unpackbits(x[f"{case}/inside"], count=pixels) for x in (packed, reference)]
    same_sign = (signs[0] == signs[1]).mean()
    score_error = np.abs(packed[f"{case}/scores"] - reference[f"{case}/scores"]).max()
    print(f"\n{compare.Agreement(float(error), float(same_sign), float(score_error))}")
    assert error <= compare.LOGITS
    assert same_sign >= compare.SAME_SIGN
    assert score_error <= compare.SCORES


def test_stored_objects_come_and_go(reference: dict[str, np.ndarray]) -> None:
    absent = (reference["objects_come_and_go/logits"] < compare.GATED).all((-1, -2))
    assert 0.1 < absent.mean() < 0.9
    # The scores are so far from 0 that rounding does not change which objects are present.
    assert np.abs(reference["objects_come_and_go/scores"]).min() > 1e-4

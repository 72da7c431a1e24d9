"""Stored samples of a reference's output, and the same samples of ours.

About a thousand evenly spread numbers per stage; per propagation every fourth pixel along both axes, the sign of every
pixel, and all scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.parity import compare, generated
from tests.parity.scenarios import SCENARIOS, Scenario, Tracked
from tests.parity.stages import Stages
from weights_conversion.convert import convert_checkpoint

DATA = Path(__file__).parent / "data"
PRESETS = ("sam2_hiera_tiny", "sam2.1_hiera_tiny")
SIZE, DEPTH, SEED = 256, 12, 0
SAMPLES = 1000  # numbers per stage


@dataclass(frozen=True)
class Case:
    """A stored propagation; `presence` is the bias of the object score, near whose middle objects come and go."""

    scenario: Scenario
    presence: float


CASES = {
    "three_objects_and_a_correction": Case(SCENARIOS["three_objects_and_a_correction"](DEPTH), 1.0),
    "mask_prompt": Case(SCENARIOS["mask_prompt"](DEPTH), 1.0),
    "objects_come_and_go": Case(SCENARIOS["one_object"](DEPTH), -0.1635),
}


def sample(stage: np.ndarray) -> np.ndarray:
    """Return evenly spread numbers of a stage; the step is odd, so that all channels are included."""
    step = -(-stage.size // SAMPLES) | 1
    return stage.reshape(-1)[::step].astype(np.float32)


def pack(case: str, tracked: Tracked) -> dict[str, np.ndarray]:
    """Return the stored samples of a propagation."""
    logits = tracked.mask_logits
    return {
        f"{case}/logits": logits[..., ::4, ::4],
        f"{case}/largest": np.abs(np.where(logits > -1000, logits, 0)).max((-1, -2)),
        f"{case}/inside": np.packbits(logits > 0),
        f"{case}/scores": tracked.object_score_logits,
    }


def provenance(preset: str) -> dict[str, Any]:
    """Return the origin of the stored outputs, with the names and shapes of the reference's tensors."""
    record: dict[str, Any] = json.loads((DATA / f"{preset}.json").read_text())
    return record


def reference(preset: str) -> dict[str, np.ndarray]:
    """Return the stored outputs of a preset."""
    with np.load(DATA / f"{preset}.npz") as arrays:
        return dict(arrays)


def convert_generated(preset: str, presence: float, folder: Path) -> Path:
    """Write the generated weights in Meta's layout, convert them, and return the checkpoint."""
    source, checkpoint = folder / "official.safetensors", folder / f"{preset} {presence}"
    save_file(generated.weights(provenance(preset)["tensors"], SEED, presence), source)
    assert convert_checkpoint(source, checkpoint).preset == preset
    return checkpoint


def stage_errors(stages: Stages, reference: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the largest difference of each stage, divided by the reference's largest magnitude."""
    errors = {}
    for name, value in stages.items():
        theirs, largest = reference[f"stage/{name}"], reference[f"stage/{name}/largest"]
        errors[name] = float(np.abs(sample(value).astype(np.float32) - theirs).max() / largest)
    return errors


def agreement(case: str, tracked: Tracked, reference: Mapping[str, np.ndarray]) -> compare.Agreement:
    """Compare a propagation with the stored one, as `compare.agreement` does with a whole one."""
    packed = pack(case, tracked)
    logits, theirs = packed[f"{case}/logits"], reference[f"{case}/logits"]
    gated = theirs < compare.GATED
    largest = np.maximum(reference[f"{case}/largest"], 1e-6)[..., None, None]
    error = float((np.abs(np.where(gated, 0, logits - theirs)) / largest).max())
    pixels = tracked.mask_logits.size
    signs = [np.unpackbits(x[f"{case}/inside"], count=pixels) for x in (packed, reference)]
    return compare.Agreement(
        error=error if np.array_equal(logits < compare.GATED, gated) else float("inf"),
        same_sign=float((signs[0] == signs[1]).mean()),
        score_error=float(np.abs(packed[f"{case}/scores"] - reference[f"{case}/scores"]).max()),
    )


def inputs_digest(shapes: Mapping[str, list[int]]) -> str:
    """Return the digest of weights and slices, which distinguishes a changed generator from a broken model."""
    weights = generated.weights({name: tuple(shape) for name, shape in shapes.items()}, SEED)
    return generated.digest(weights | {"slices": generated.slices(DEPTH, SIZE, SEED)})

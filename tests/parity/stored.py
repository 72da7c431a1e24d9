"""Stored samples of a reference's output, and the same samples of ours.

About a thousand evenly spread numbers per stage; per propagation every fourth pixel along both axes, the sign of every
pixel, and all scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.parity import generated
from tests.parity.scenarios import SCENARIOS, Scenario, Tracked

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


def inputs_digest(shapes: Mapping[str, list[int]]) -> str:
    """Return the digest of weights and slices, which distinguishes a changed generator from a broken model."""
    weights = generated.weights({name: tuple(shape) for name, shape in shapes.items()}, SEED)
    return generated.digest(weights | {"slices": generated.slices(DEPTH, SIZE, SEED)})

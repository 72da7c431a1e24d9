"""What is stored of a reference's output, and what is compared with it: the same numbers taken from ours.

Of each stage some thousand numbers spread over it; of each walk every fourth pixel in both directions, the sign of
every pixel, and all scores.
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
SAMPLES = 1000  # of a stage


@dataclass(frozen=True)
class Case:
    """A walk that is stored. `presence` moves the object score: near its middle, objects come and go."""

    scenario: Scenario
    presence: float


CASES = {
    "three_objects_and_a_correction": Case(SCENARIOS["three_objects_and_a_correction"](DEPTH), 1.0),
    "mask_prompt": Case(SCENARIOS["mask_prompt"](DEPTH), 1.0),
    "objects_come_and_go": Case(SCENARIOS["one_object"](DEPTH), -0.1635),
}


def sample(stage: np.ndarray) -> np.ndarray:
    """Numbers spread over a stage; an odd step visits all channels."""
    step = -(-stage.size // SAMPLES) | 1
    return stage.reshape(-1)[::step].astype(np.float32)


def pack(case: str, tracked: Tracked) -> dict[str, np.ndarray]:
    """What is stored of a walk."""
    logits = tracked.mask_logits
    return {
        f"{case}/logits": logits[..., ::4, ::4],
        f"{case}/largest": np.abs(np.where(logits > -1000, logits, 0)).max((-1, -2)),
        f"{case}/inside": np.packbits(logits > 0),
        f"{case}/scores": tracked.object_score_logits,
    }


def inputs_digest(shapes: Mapping[str, list[int]]) -> str:
    """Of weights and slices, so that a changed generator is not taken for a broken model."""
    made = generated.weights({name: tuple(shape) for name, shape in shapes.items()}, SEED)
    return generated.digest(made | {"slices": generated.slices(DEPTH, SIZE, SEED)})

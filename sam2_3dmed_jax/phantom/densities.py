"""Mean HU of every tissue of one case, between no contrast medium and a portal-venous phase, and MR signals.

Touching organs differ by 5 to 80 HU, and one neighbour of the spleen has almost its density, so that density alone
cannot segment it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# HU without contrast medium and in a full portal-venous phase; a case is in between.
_PHASES: dict[str, tuple[float, float]] = {
    "muscle": (52, 62),
    "spleen": (48, 112),
    "liver": (54, 104),
    "kidney": (34, 150),
    "pancreas": (40, 92),
    "stomach_wall": (38, 82),
    "colon_wall": (38, 76),
    "bowel_wall": (38, 82),
    "heart": (42, 125),
    "blood": (42, 140),
    "artery": (42, 140),
    "vein": (42, 145),
    "liver_vessel": (46, 150),
}
TOUCHING = (
    *[
        ("spleen", n)
        for n in ("muscle", "liver", "kidney", "stomach_wall", "stomach_content", "colon_wall", "pancreas")
    ],
    *[("liver", n) for n in ("muscle", "kidney", "stomach_wall")],
    *[("pancreas", n) for n in ("stomach_wall", "vein", "bowel_wall", "tumour")],
    ("kidney", "muscle"),
)


def draw_densities(rng: np.random.Generator) -> dict[str, float]:
    """Return the mean HU of each tissue; touching organs differ by 5-80 HU, one of the spleen by at most 13."""
    while True:
        phase = rng.uniform(0, 0.75)
        hu = {k: (1 - phase) * a + phase * b + rng.normal(0, 4) for k, (a, b) in _PHASES.items()}
        hu |= {
            "stomach_content": rng.uniform(8, 70),
            "bowel_content": rng.uniform(5, 50),
            "stool": rng.uniform(-30, 40),
        }
        name = str(rng.choice(["stomach", "kidney", "colon_wall", "muscle", "liver"]))
        near = hu["spleen"] + rng.choice([-1, 1]) * rng.uniform(5, 13)
        for tissue in ("stomach_wall", "stomach_content") if name == "stomach" else (name,):
            hu[tissue] = near
        hu["tumour"] = hu["pancreas"] - rng.uniform(6, 24)
        hu["nodule"] = rng.uniform(5, 60)
        if 40 <= hu["muscle"] <= 76 and all(5 <= abs(hu[a] - hu[b]) <= 80 for a, b in TOUCHING):
            break
    fat = rng.uniform(-112, -92)
    fixed = {
        "outside": -1000,
        "air": -960,
        "lung": rng.uniform(-860, -760),
        "fat": fat,
        "skin": 10,
        "bile": rng.uniform(4, 18),
    }
    bone = {"cortical": rng.uniform(380, 620), "cancellous": rng.uniform(140, 230), "disc": 85, "canal": 22}
    return hu | fixed | bone


# Signal of tissues on a T1-weighted MR, as a share of fat's. The signal of all others follows from their HU.
_MR_SIGNALS = {
    **{"outside": 0.0, "air": 0.0, "lung": 0.06, "fat": 1.0, "skin": 0.5},
    **{"cortical": 0.05, "cancellous": 0.55, "disc": 0.3, "canal": 0.2},
}
_MR_SIGNAL_PER_HU = 0.004  # soft tissues touch with the same ratio of contrast and noise as on CT


@dataclass(frozen=True)
class MrSignals:
    """Mean signal of every tissue of one case, in the arbitrary unit of its scan."""

    means: dict[str, float]
    per_hu: float  # signal that corresponds to 1 HU of noise or contrast


def draw_mr_signals(hu: dict[str, float], rng: np.random.Generator) -> MrSignals:
    """Return the MR signal of tissues with these HU. Fat has 300 to 8000, because MR has no unit."""
    scale = float(np.exp(rng.uniform(np.log(300), np.log(8000))))
    shares = {tissue: _MR_SIGNALS.get(tissue, 0.2 + _MR_SIGNAL_PER_HU * value) for tissue, value in hu.items()}
    return MrSignals({tissue: scale * share for tissue, share in shares.items()}, scale * _MR_SIGNAL_PER_HU)

"""Agreement of propagation upwards and downwards: from a click low in an object, and from one high in it.

Both segment the slices between the clicks, from opposite sides; their Dice is the agreement. The Dice of each with the
reference is reported, too: a model that agrees with itself may still be wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax import VolumePredictor, load_model
from sam2_3dmed_jax.data.datasets import LabelledCase
from sam2_3dmed_jax.evaluation.result_files import SUMMARY, table_text, write_files
from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
from sam2_3dmed_jax.inference.predictor import Session
from sam2_3dmed_jax.inference.segment import label_result, to_slices
from sam2_3dmed_jax.metrics.overlap import overlap_metrics
from sam2_3dmed_jax.prompts.simulation import centre_point
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.intensity import PreparedSlices
from sam2_3dmed_jax.volume.io import read_labels, read_volume
from sam2_3dmed_jax.volume.modality import ModalitySources

TABLE = "directions.csv"
COLUMNS = ("case", "labels", "low_slice", "high_slice", "agreement", "dice_upwards", "dice_downwards")
LOW, HIGH = 0.25, 0.75  # positions of the clicks among the slices of the object
LEAST = 2  # slices between the clicks; thinner objects are left out and counted
DEFINITIONS = {
    "agreement": (
        f"Dice between the masks of both directions on the slices between a click at {LOW:.0%} and one at {HIGH:.0%} "
        "of the slices that hold the object; each click is a session of its own"
    ),
    "dice_upwards": "Dice with the reference on these slices, from the lower click",
    "dice_downwards": "the same from the upper click",
    "averaging": "mean over cases of each object, where it has slices between the clicks and either mask is not empty",
}


def agreement(
    checkpoint: str,
    cases: Sequence[LabelledCase],
    plan: EvaluationSettings,
    modality: ModalitySources,
) -> Iterator[dict[str, Any]]:
    """Yield one row per case and object."""
    model = load_model(checkpoint, compute_dtype="float32")
    predictor = VolumePredictor(model, order="independent")
    size = model.config.image_size
    for case in cases:
        volume = read_volume(case.image, modality=modality)
        reference = read_labels(case.label, volume)
        session: Session | None = None
        for target in plan.objects:
            mask = np.isin(reference, target)
            present = np.flatnonzero(mask.any((1, 2)))
            if not len(present):
                continue
            low, high = (int(present[round(share * (len(present) - 1))]) for share in (LOW, HIGH))
            row = dict.fromkeys(COLUMNS[4:], math.nan)
            if high - low > LEAST:
                session = session or predictor.start(PreparedSlices(volume, model.info.preprocessing, size))
                between = slice(low + 1, high)
                up, down = (_from_click(session, mask, at, volume.spacing[1:], size)[between] for at in (low, high))
                pairs = ((up, down), (up, mask[between]), (down, mask[between]))
                row = dict(zip(row, (overlap_metrics(*pair)["dice"] for pair in pairs), strict=True))
            labels = "+".join(map(str, target))
            yield {"case": case.id, "labels": labels, "low_slice": low, "high_slice": high, **row}


def _from_click(session: Session, mask: np.ndarray, at: int, pixel_mm: tuple[float, float], size: int) -> np.ndarray:
    """Return the mask `[D, H, W]` from one click on one slice."""
    session.reset()
    prompt = VoxelPrompt(1, at, (centre_point(mask[at], pixel_mm),), (1,))
    session.add(to_slices([prompt], mask.shape[1:], size))
    return label_result(session.result(), mask.shape[1:]).labels > 0


def write(rows: Iterator[dict[str, Any]], out: Path) -> None:
    """Write `directions.csv` and `summary.json`."""
    all_rows = list(rows)
    summary: dict[str, Any] = {"definitions": DEFINITIONS, "objects": {}}
    for labels in dict.fromkeys(row["labels"] for row in all_rows):
        own = [row for row in all_rows if row["labels"] == labels]
        means = {}
        for name in COLUMNS[4:]:
            values = np.array([row[name] for row in own], float)
            values = values[~np.isnan(values)]
            means[name] = float(values.mean()) if len(values) else None
        left = sum(math.isnan(row["agreement"]) for row in own)
        summary["objects"][labels] = {**means, "cases": len(own) - left, "left_out": left}
    write_files({TABLE: table_text(COLUMNS, all_rows), SUMMARY: json.dumps(summary, indent=2) + "\n"}, out)

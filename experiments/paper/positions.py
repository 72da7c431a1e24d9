"""Accuracy of slice positions: SRPP's predicted against true distances on held-out scans, and a probe's.

The probe only gets the area of the body and its mean density on each slice. If it predicts positions as well as SRPP,
SRPP's task needs no anatomy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from sam2_3dmed_jax import VolumePredictor, load_model
from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.datasets import LabelledCase
from sam2_3dmed_jax.evaluation.result_files import SUMMARY, table_text, write_files
from sam2_3dmed_jax.sam2.parameters import Weights, merge, split
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import PreparedSlices
from sam2_3dmed_jax.volume.io import read_volume
from sam2_3dmed_jax.volume.modality import ModalitySources

TABLE = "positions.csv"
COLUMNS = ("case", "distance_slices", "pairs", "true_mm", "predicted_mm", "abs_error_mm", "right_sign")
WINDOWS = 8  # windows per case and stride, evenly spread
BODY_HU = -500.0  # voxels above it belong to the body, without the lungs
DEFINITIONS = {
    "pairs": "ordered pairs i != j of slices of a window, by their true distance j - i in slices",
    "abs_error_mm": "mean |predicted - true| distance, mm",
    "right_sign": "share of pairs whose predicted order is the true one",
    "r2": "1 - sum (predicted - true)^2 / sum (true - mean true)^2 over all pairs of all cases, mm",
    "averaging": "mean over pairs of a case, then over cases",
}

# Case, then true distances in slices, true and predicted distances in mm, each `[pairs]`.
PredictedPairs = tuple[str, np.ndarray, np.ndarray, np.ndarray]


def windows_of(depth: int, data: DataConfig) -> Iterator[np.ndarray]:
    """Yield slice indices `[D]` of windows of neighbouring slices, and of slices at the largest stride of training."""
    for stride in sorted({1, data.clips.max_stride}):
        last = depth - 1 - stride * (data.slices - 1)
        if last >= 0:
            for start in np.unique(np.linspace(0, last, WINDOWS).round().astype(int)):
                yield start + stride * np.arange(data.slices)


def srpp_distances(
    checkpoint: str, cases: Sequence[LabelledCase], data: DataConfig, modality: ModalitySources
) -> Iterator[PredictedPairs]:
    """Yield the distances that a checkpoint's SRPP head predicts in each case."""
    model = load_model(checkpoint, compute_dtype="float32")
    predictor = VolumePredictor(model)
    graphdef, weights = split(model)
    srpp = model.info.model.slice_position
    for case in cases:
        volume = read_volume(case.image, modality=modality)
        store = predictor.encode(PreparedSlices(volume, model.info.preprocessing, model.config.image_size))
        windows = np.array(list(windows_of(len(volume.array), data)), int).reshape(-1, data.slices)
        unit = 1.0 if srpp.unit == "mm" else volume.spacing[0]
        predicted = [
            np.asarray(_read(graphdef, weights, store.gather(window)[0].embedding, window.astype(np.float32)))
            for window in windows
        ]
        yield _pairs(case.id, volume, windows, np.array(predicted).reshape(-1, *[data.slices] * 2) * srpp.scale * unit)


@partial(jax.jit, static_argnums=0)
def _read(graphdef: nnx.GraphDef, weights: Weights, embedding: jax.Array, index: jax.Array) -> jax.Array:
    """`P_pos [D, D]` of one window from its features `[D, h, w, C]`."""
    srpp = merge(graphdef, weights).slice_position
    valid = jax.numpy.ones((1, len(index)), bool)
    return srpp.positions(srpp.context(srpp.embed(embedding)[None], valid, index[None]))[0]


def probe_distances(
    training: Sequence[LabelledCase], cases: Sequence[LabelledCase], data: DataConfig, modality: ModalitySources
) -> Iterator[PredictedPairs]:
    """Yield the distances that a linear probe predicts, fitted by least squares to training cases.

    Its inputs are body area, mean density, their squares and their product. A predicted distance is the difference of
    two positions, like a true one.
    """
    volumes = [read_volume(case.image, modality=modality) for case in training]
    x, y = [], []
    for volume in volumes:
        inputs, depth = _probe_features(volume), len(volume.array)
        for window in windows_of(depth, data):
            i, j = _ordered(window)
            x.append(inputs[j] - inputs[i])
            y.append((j - i) * volume.spacing[0])
    fitted = np.linalg.lstsq(np.concatenate(x), np.concatenate(y), rcond=None)[0]
    for case in cases:
        volume = read_volume(case.image, modality=modality)
        windows = np.array(list(windows_of(len(volume.array), data)), int).reshape(-1, data.slices)
        position = (_probe_features(volume) @ fitted)[windows]
        yield _pairs(case.id, volume, windows, position[:, None, :] - position[:, :, None])


def _probe_features(volume: Volume) -> np.ndarray:
    """Return the probe's inputs of each slice, `[D, 5]`."""
    body = volume.array > BODY_HU
    area = body.sum((1, 2)) * volume.spacing[1] * volume.spacing[2] / 1e4  # dm^2
    density = np.where(body, volume.array, 0).sum((1, 2)) / np.maximum(body.sum((1, 2)), 1) / 100
    return np.stack([area, density, area**2, density**2, area * density], 1)


def _ordered(window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = (side.ravel() for side in np.meshgrid(window, window, indexing="ij"))
    return first[first != second], second[first != second]


def _pairs(case: str, volume: Volume, windows: np.ndarray, predicted_mm: np.ndarray) -> PredictedPairs:
    apart = ~np.eye(windows.shape[1], dtype=bool)
    steps = (windows[:, None, :] - windows[:, :, None])[:, apart].ravel()
    return case, steps, steps * volume.spacing[0], predicted_mm[:, apart].ravel()


def write(cases: Iterator[PredictedPairs], out: Path) -> None:
    """Write `positions.csv`, one row per case and distance, and `summary.json`."""
    rows: list[dict[str, Any]] = []
    of_case, true, predicted = [], [], []
    for case, steps, mm, prediction in cases:
        if not len(steps):
            continue
        right = np.sign(prediction) == np.sign(mm)
        for distance in np.unique(steps):
            at = steps == distance
            values = (mm[at].mean(), prediction[at].mean(), np.abs(prediction - mm)[at].mean(), right[at].mean())
            named = {"case": case, "distance_slices": int(distance), "pairs": int(at.sum())}
            rows.append({**named, **dict(zip(COLUMNS[3:], map(float, values), strict=True))})
        of_case.append((np.abs(prediction - mm).mean(), right.mean()))
        true.append(mm)
        predicted.append(prediction)
    summary: dict[str, Any] = {"cases": len(of_case), "abs_error_mm": None, "right_sign": None, "r2": None}
    if of_case:
        y, p = np.concatenate(true), np.concatenate(predicted)
        means = np.array(of_case).mean(0).tolist()
        summary |= dict(zip(("abs_error_mm", "right_sign"), means, strict=True))
        summary["r2"] = float(1 - ((p - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    summary["definitions"] = DEFINITIONS
    write_files({TABLE: table_text(COLUMNS, rows), SUMMARY: json.dumps(summary, indent=2) + "\n"}, out)

"""How well slice positions are read: SRPP's predicted against true distances on held-out scans, and a probe's.

The probe knows of each slice only the area of the body and its mean density. If it reads positions as well as SRPP
does, SRPP's task needs no anatomy.
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
from sam2_3dmed_jax.data.datasets import Case
from sam2_3dmed_jax.evaluation.results import SUMMARY, table_text, write_files
from sam2_3dmed_jax.sam2.parameters import Weights, merge, split
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import PreparedSlices
from sam2_3dmed_jax.volume.io import read_volume

TABLE = "positions.csv"
COLUMNS = ("case", "distance_slices", "pairs", "true_mm", "predicted_mm", "abs_error_mm", "right_sign")
WINDOWS = 8  # of a case and stride, evenly spread
BODY_HU = -500.0  # what is denser belongs to the body, lungs left out
DEFINITIONS = {
    "pairs": "ordered pairs i != j of slices of a window, by their true distance j - i in slices",
    "abs_error_mm": "mean |predicted - true| distance, mm",
    "right_sign": "share of pairs whose predicted order is the true one",
    "r2": "1 - sum (predicted - true)^2 / sum (true - mean true)^2 over all pairs of all cases, mm",
    "averaging": "mean over pairs of a case, then over cases",
}

Read = tuple[str, np.ndarray, np.ndarray, np.ndarray]  # case, true slices, true mm, predicted mm: [pairs] each


def windows_of(depth: int, data: DataConfig) -> Iterator[np.ndarray]:
    """Slice indices `[D]` of windows with neighbouring slices, and with those as far apart as in training."""
    for stride in sorted({1, data.stride}):
        last = depth - 1 - stride * (data.slices - 1)
        if last >= 0:
            for start in np.unique(np.linspace(0, last, WINDOWS).round().astype(int)):
                yield start + stride * np.arange(data.slices)


def of_checkpoint(checkpoint: str, cases: Sequence[Case], data: DataConfig) -> Iterator[Read]:
    """What a checkpoint's SRPP head reads from each case."""
    model = load_model(checkpoint)
    predictor = VolumePredictor(model)
    graphdef, weights = split(model)
    srpp = model.info.model.slice_position
    for case in cases:
        volume = read_volume(case.image)
        store = predictor.encode(PreparedSlices(volume, model.info.preprocessing, model.config.image_size))
        windows = np.array(list(windows_of(len(volume.array), data)), int).reshape(-1, data.slices)
        unit = 1.0 if srpp.unit == "mm" else volume.spacing[0]
        found = [
            np.asarray(_read(graphdef, weights, store.embedding[window], window.astype(np.float32)))
            for window in windows
        ]
        yield _pairs(case.id, volume, windows, np.array(found).reshape(-1, *[data.slices] * 2) * srpp.scale * unit)


@partial(jax.jit, static_argnums=0)
def _read(graphdef: nnx.GraphDef, weights: Weights, embedding: jax.Array, index: jax.Array) -> jax.Array:
    """`P_pos [D, D]` of one window from its features `[D, h, w, C]`."""
    srpp = merge(graphdef, weights).slice_position
    valid = jax.numpy.ones((1, len(index)), bool)
    return srpp.positions(srpp.context(srpp.embed(embedding)[None], valid, index[None]))[0]


def of_probe(training: Sequence[Case], cases: Sequence[Case], data: DataConfig) -> Iterator[Read]:
    """What least squares make of body area, mean density, their squares and their product, fitted to training cases.

    A predicted distance is the difference of two positions, as a true one is.
    """
    seen = [(case, read_volume(case.image)) for case in training]
    x, y = [], []
    for _, volume in seen:
        known, depth = _seen_of(volume), len(volume.array)
        for window in windows_of(depth, data):
            i, j = _ordered(window)
            x.append(known[j] - known[i])
            y.append((j - i) * volume.spacing[0])
    fitted = np.linalg.lstsq(np.concatenate(x), np.concatenate(y), rcond=None)[0]
    for case in cases:
        volume = read_volume(case.image)
        windows = np.array(list(windows_of(len(volume.array), data)), int).reshape(-1, data.slices)
        position = (_seen_of(volume) @ fitted)[windows]
        yield _pairs(case.id, volume, windows, position[:, None, :] - position[:, :, None])


def _seen_of(volume: Volume) -> np.ndarray:
    """What the probe sees of each slice, `[D, 5]`."""
    body = volume.array > BODY_HU
    area = body.sum((1, 2)) * volume.spacing[1] * volume.spacing[2] / 1e4  # dm^2
    density = np.where(body, volume.array, 0).sum((1, 2)) / np.maximum(body.sum((1, 2)), 1) / 100
    return np.stack([area, density, area**2, density**2, area * density], 1)


def _ordered(window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = (side.ravel() for side in np.meshgrid(window, window, indexing="ij"))
    return first[first != second], second[first != second]


def _pairs(case: str, volume: Volume, windows: np.ndarray, predicted_mm: np.ndarray) -> Read:
    apart = ~np.eye(windows.shape[1], dtype=bool)
    steps = (windows[:, None, :] - windows[:, :, None])[:, apart].ravel()
    return case, steps, steps * volume.spacing[0], predicted_mm[:, apart].ravel()


def write(found: Iterator[Read], out: Path) -> None:
    """Write `positions.csv`, a row a case and distance, and `summary.json`."""
    rows: list[dict[str, Any]] = []
    of_case, true, predicted = [], [], []
    for case, steps, mm, read in found:
        if not len(steps):
            continue
        right = np.sign(read) == np.sign(mm)
        for distance in np.unique(steps):
            at = steps == distance
            values = (mm[at].mean(), read[at].mean(), np.abs(read - mm)[at].mean(), right[at].mean())
            named = {"case": case, "distance_slices": int(distance), "pairs": int(at.sum())}
            rows.append({**named, **dict(zip(COLUMNS[3:], map(float, values), strict=True))})
        of_case.append((np.abs(read - mm).mean(), right.mean()))
        true.append(mm)
        predicted.append(read)
    summary: dict[str, Any] = {"cases": len(of_case), "abs_error_mm": None, "right_sign": None, "r2": None}
    if of_case:
        y, p = np.concatenate(true), np.concatenate(predicted)
        means = np.array(of_case).mean(0).tolist()
        summary |= dict(zip(("abs_error_mm", "right_sign"), means, strict=True))
        summary["r2"] = float(1 - ((p - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    summary["definitions"] = DEFINITIONS
    write_files({TABLE: table_text(COLUMNS, rows), SUMMARY: json.dumps(summary, indent=2) + "\n"}, out)

"""Simulated reader who contours the targets slice by slice, with smooth errors of a fraction of a pixel."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def contour(
    covered: dict[str, np.ndarray], values: dict[str, int], jitter: float, rng: np.random.Generator
) -> np.ndarray:
    """Return labels uint8 [D, H, W]; low-frequency errors (SD `jitter` pixels) displace the contours of each slice."""
    shape = next(iter(covered.values())).shape
    label = np.zeros(shape, np.uint8)
    union = sum(covered.values())
    assert isinstance(union, np.ndarray)
    where = np.argwhere(union > 0.05)
    if not len(where):
        return label
    low, high = np.maximum(where.min(0) - [0, 4, 4], 0), where.max(0) + [1, 5, 5]
    box = tuple(slice(i, j) for i, j in zip(low, high, strict=True))
    error = ndimage.gaussian_filter(rng.standard_normal(union[box].shape, np.float32), (0.5, 3, 3))
    error *= np.float32(jitter) / error.std()
    whole = _displaced(union[box], error)
    part = label[box]
    first, *rest = values
    part[whole] = values[first]
    for name in rest:  # an inner boundary (organ to tumour) has its own errors
        part[whole & _displaced(covered[name][box], error[:, ::-1])] = values[name]
    return label


def _displaced(fraction: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return {fraction > 0.5} with its in-plane boundary moved outwards by `error` pixels; small parts move less."""
    inside = fraction > 0.5
    far = (1e3, 1, 1)  # distances are measured within slices only
    depth = ndimage.distance_transform_edt(inside, far) if inside.any() else np.zeros(inside.shape)
    outer = ndimage.distance_transform_edt(~inside, far)
    distance = np.where(inside, 0.5 - depth, outer - 0.5)
    distance = np.where(np.abs(distance) < 1, 0.5 - fraction, distance)  # subpixel where the voxel is partly covered
    radius = np.sqrt(inside.sum((1, 2), keepdims=True) / np.pi)
    return distance < error * np.clip(radius / 5, 0.3, 1) * (radius > 0)

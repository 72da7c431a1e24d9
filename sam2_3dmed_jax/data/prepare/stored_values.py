"""Storage of values as int16: HU for CT, integers unchanged, and other values scaled by their range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sam2_3dmed_jax.volume.intensity import HU_RANGE

_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class Scaling:
    """Linear scaling, `value = slope * stored + intercept`, and the limits of the stored values."""

    slope: float
    intercept: float
    clip: tuple[int, int] = (int(_INT16.min), int(_INT16.max))

    def stored(self, values: np.ndarray) -> np.ndarray:
        """Return float32 values of any shape as int16, rounded to the nearest."""
        exact = values if (self.slope, self.intercept) == (1.0, 0.0) else (values.astype(np.float64) - self.intercept)
        scaled = np.rint(exact if self.slope == 1.0 else exact / self.slope)
        return np.clip(scaled, *self.clip).astype(np.int16)


def choose_scaling(values: np.ndarray, modality: str) -> Scaling:
    """Return the scaling of a volume, which is exact if 16 bits suffice.

    CT is rounded to HU and clipped to [-1024, 3071]. Integers of other modalities are exact if their range is at most
    65535; other values have an error of at most half a slope, 1 / 131,000 of their range.

    Args:
        values: `[D, H, W]` float32.
        modality: DICOM's Modality.
    """
    if modality == "CT":
        return Scaling(1.0, 0.0, HU_RANGE)
    low, high = float(values.min()), float(values.max())
    levels = float(_INT16.max) - float(_INT16.min)
    if high - low <= levels and all(bool((plane == np.rint(plane)).all()) for plane in values):
        fits = low >= _INT16.min and high <= _INT16.max
        return Scaling(1.0, 0.0 if fits else low - float(_INT16.min))
    slope = (high - low) / levels
    return Scaling(slope, low - float(_INT16.min) * slope)

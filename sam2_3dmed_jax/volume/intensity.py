"""Intensity windows, slice resizing and normalisation between voxels and the encoder's input.

CT uses a window in HU. Other modalities use percentiles of their own values, because these have no unit.
Slices are stretched to S x S without keeping their aspect ratio, as in SAM 2: voxel index x is at pixel
`(x + 0.5) * S / W - 0.5`. The resizing is `jax.image.resize(method="linear", antialias=True)` as two matrices.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sam2_3dmed_jax.config import PreprocessingConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.imagenet import ArrayT, normalise
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.modality import CT, check_modality

if TYPE_CHECKING:
    import jax

Window = tuple[float, float]  # (level, width) in the values of a volume
# (level, width) in HU: the usual settings of radiology, and two that published methods use.
WINDOWS: dict[str, tuple[float, float]] = {
    "soft_tissue": (40.0, 400.0),
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "liver": (30.0, 150.0),
    "bone": (400.0, 1800.0),
    "lung_medsam": (-160.0, 1500.0),
    "universal_model": (37.5, 425.0),
}
WINDOW_FIELD = "data.preprocessing.window"
PERCENTILES = "0.5%,99.5%"  # the window of modalities other than CT
HU_RANGE = (-1024, 3071)  # range of a scanner with 12 bits, air to dense bone; prepared CT is clipped to it
_SAMPLE = 1 << 22  # percentiles are computed over at most this many voxels, evenly spread


def parse_window(window: str, where: str = WINDOW_FIELD) -> tuple[float, float]:
    """Read a window in HU.

    Args:
        window: a name of `WINDOWS`, or "LEVEL,WIDTH" in HU, such as "40,400".
        where: the field or flag, for the message.

    Returns:
        (level, width) in HU.

    Raises:
        UserError: neither of the two, or the width is not positive.
    """
    if window in WINDOWS:
        return WINDOWS[window]
    level, width = _two_numbers(window)
    if not (math.isfinite(level) and math.isfinite(width) and width > 0):
        raise UserError(
            f"{where} is {window!r}, expected LEVEL,WIDTH in HU with a positive width, such as "
            f"40,400, two percentiles such as {PERCENTILES}, or one of {', '.join(WINDOWS)}"
        )
    return level, width


def window_of(volume: Volume, window: str, where: str = WINDOW_FIELD) -> tuple[float, float]:
    """Return the window of one volume by the setting `data.preprocessing.window`.

    Args:
        volume: its modality and values are used; percentiles leave out the lowest value, which is background.
        window: as `parse_window`, or "LOW%,HIGH%", percentiles from 0 to 100. Other modalities than CT use
            `PERCENTILES` instead of a window in HU.
        where: the field or flag, for the message.

    Returns:
        (level, width) in the volume's own values.

    Raises:
        UserError: the window has another form.
    """
    if "%" not in window:
        in_hu = parse_window(window, where)
        if volume.modality == CT:
            return in_hu
        window = PERCENTILES
    low, high = _two_numbers(window.replace("%", ""))
    if window.count("%") != 2 or not 0 <= low < high <= 100:
        raise UserError(f"{where} is {window!r}, expected two growing percentiles from 0 to 100, such as {PERCENTILES}")
    values = volume.array.reshape(-1)[:: -(-volume.array.size // _SAMPLE)]
    if volume.modality == CT:
        values = np.clip(values, *HU_RANGE)
    foreground = values[values > values.min()]
    bottom, top = np.percentile(foreground if foreground.size else values, (low, high)).tolist()
    return (bottom + top) / 2, max(top - bottom, 1e-6)  # a constant volume becomes constant slices


def check_window(window: str, where: str = WINDOW_FIELD) -> None:
    """Check a window before volumes are read; `where` is the field or flag, for the message.

    Raises:
        UserError: as `window_of`.
    """
    window_of(Volume(np.zeros((1, 1, 1), np.float32), Grid((1, 1, 1), np.eye(4))), window, where)


def window_of_model(volume: Volume, preprocessing: PreprocessingConfig, checkpoint: str = "the checkpoint") -> Window:
    """Return the window of one volume for a model, the same in training, evaluation and prediction.

    Args:
        volume: as `window_of`.
        preprocessing: of the model.
        checkpoint: the name of the model in messages.

    Raises:
        UserError: the model was trained on another modality, or the window has another form.
    """
    check_modality(volume.modality, preprocessing, volume.grid.source or "the volume", checkpoint)
    return window_of(volume, preprocessing.window)


def preprocessing_of(preprocessing: PreprocessingConfig, modalities: Collection[str]) -> PreprocessingConfig:
    """Return the preprocessing of a model that is trained on scans, as its checkpoint stores it.

    Args:
        preprocessing: the settings of the run.
        modalities: of the scans. With several, the checkpoint stores none, and each scan has the window of its own.
    """
    if len(modality := {*modalities}) != 1:
        return replace(preprocessing, modality="")
    (only,) = modality
    window = preprocessing.window if only == CT or "%" in preprocessing.window else PERCENTILES
    return PreprocessingConfig(window, only)


def _two_numbers(text: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        return math.nan, math.nan
    return first, second


def window_ends(window: Window) -> tuple[np.float32, np.float32]:
    """Return the lower end and the width of a window (level, width), as `window_and_resize` takes them."""
    level, width = window
    return np.float32(level - width / 2), np.float32(width)


def apply_window(hu: np.ndarray, level: float, width: float) -> np.ndarray:
    """Map HU linearly onto [0, 1], `level - width / 2` to 0 and `level + width / 2` to 1, and clip.

    Args:
        hu: any shape, any real dtype.
        level: centre of the window, HU.
        width: width of the window, HU, positive.

    Returns:
        float32 in [0, 1], of the same shape.
    """
    unit: np.ndarray = _to_unit(np.asarray(hu), *window_ends((level, width)))
    return unit


def _to_unit(grey: ArrayT, low: np.float32 | jax.Array, width: np.float32 | jax.Array) -> ArrayT:
    """Map values linearly onto [0, 1], `low` to 0 and `low + width` to 1, and clip; float32."""
    unit = grey.astype(np.float32)
    unit -= low  # In place in NumPy; JAX returns another array.
    unit /= width
    return unit.clip(0.0, 1.0)


def window_and_resize(
    grey: ArrayT,
    low: np.float32 | jax.Array,
    width: np.float32 | jax.Array,
    vertical: ArrayT | None,
    horizontal: ArrayT | None,
) -> ArrayT:
    """Apply a window, then resize, then clip: the only implementation, on the host and in JAX.

    In JAX, call it through `volume.device_intensity`, which sets the precision of the products.

    Args:
        grey: `[..., H, W]`, any real dtype.
        low: the lower end of the window, float32, in the values of `grey`; see `window_ends`.
        width: its width, float32, positive.
        vertical: float32 `[S, H]`, see `resize_matrix`; None if the slices have their size already.
        horizontal: float32 `[W, S]`, the transposed matrix of the columns; None if `vertical` is None.

    Returns:
        `[..., S, S]` float32 in [0, 1], an array of the same kind.
    """
    return resize_by_matrices(_to_unit(grey, low, width), vertical, horizontal).clip(0.0, 1.0)


def resize_by_matrices(slices: ArrayT, vertical: ArrayT | None, horizontal: ArrayT | None) -> ArrayT:
    """Return slices `[..., h, w]` as `[..., H, W]`; without matrices they are returned as they are."""
    if vertical is None or horizontal is None:
        return slices
    resized: ArrayT = vertical @ slices @ horizontal
    return resized


@functools.lru_cache(maxsize=16)
def resize_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Return linear interpolation with half-pixel centres as a matrix; the triangle filter widens when shrinking.

    Equals `jax.image.resize(..., method="linear", antialias=True)` along one axis.

    Args:
        n_in: samples before.
        n_out: samples after.

    Returns:
        `[n_out, n_in]` float32 whose rows sum to 1; read-only, since it is cached.
    """
    step = n_in / n_out
    centres = (np.arange(n_out) + 0.5) * step - 0.5
    distance = np.abs(centres[:, None] - np.arange(n_in)[None, :]) / max(step, 1.0)
    weights = np.maximum(0.0, 1.0 - distance)
    matrix: np.ndarray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    matrix.flags.writeable = False
    return matrix


def resize_matrices(shape: Sequence[int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Return the matrices that resize slices as `vertical @ slice @ horizontal`.

    Args:
        shape: (H, W), voxels of a slice.
        size: (rows, columns) after resizing.

    Returns:
        float32 `[rows, H]` and `[W, columns]`, read-only; None and None if the slices have the size already.
    """
    (h, w), (rows, columns) = shape, size
    if (h, w) == (rows, columns):
        return None, None
    return resize_matrix(h, rows), resize_matrix(w, columns).T


def resize_slices(array: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize each slice by two matrix products, one slice at a time, so that only the result is large.

    Slices that already have the size are copied.

    Args:
        array: `[D, H, W]`, any real dtype.
        size: S for square slices, or (rows, columns).

    Returns:
        `[D, rows, columns]` float32.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    depth, *shape = array.shape
    vertical, horizontal = resize_matrices(shape, (rows, columns))
    if vertical is None or horizontal is None:
        return array.astype(np.float32)
    out = np.empty((depth, rows, columns), np.float32)
    for d in range(depth):
        np.matmul(vertical @ np.asarray(array[d], np.float32), horizontal, out=out[d])
    return out


def prepare_slices(hu: np.ndarray, window: tuple[float, float], image_size: int) -> np.ndarray:
    """Preprocess slices on the host, one slice at a time: window, then resize, then clip.

    Args:
        hu: `[D, H, W]` HU.
        window: (level, width), see `window_of`.
        image_size: S, pixels.

    Returns:
        `[D, S, S]` float32 in [0, 1].
    """
    depth, *shape = hu.shape
    matrices = resize_matrices(shape, (image_size, image_size))
    unit = np.empty((depth, image_size, image_size), np.float32)
    for d in range(depth):
        unit[d] = window_and_resize(hu[d], *window_ends(window), *matrices)
    return unit


class PreparedSlices:
    """Slices of a volume as the model takes them, `[D, S, S, 3]` float32, computed on indexing and not kept.

    Inference prepares the slices of `volume` on the device instead (`inference.device_slices`).

    Attributes:
        volume: the volume.
        window: (level, width), see `window_of`.
        shape: (D, S, S, 3).
    """

    def __init__(
        self, volume: Volume, preprocessing: PreprocessingConfig, image_size: int, window: Window | None = None
    ):
        """Compute the window of the whole volume, unless it is known.

        Args:
            volume: the volume.
            preprocessing: of the model.
            image_size: S.
            window: (level, width) of the volume that this one is a part of; None: of this volume.

        Raises:
            UserError: as `window_of_model`.
        """
        self.volume = volume
        self.window = window_of_model(volume, preprocessing) if window is None else window
        self.shape = (len(volume.array), image_size, image_size, 3)

    def __len__(self) -> int:
        """D."""
        return self.shape[0]

    def __getitem__(self, at: slice) -> np.ndarray:
        """Return slices `at`, normalised."""
        return normalise(prepare_slices(self.volume.array[at], self.window, self.shape[1]))


def restore_logits(logits: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize logits to the voxels of their slices.

    Args:
        logits: `[D, s, s]`, any float dtype.
        shape: (H, W) in voxels.

    Returns:
        `[D, H, W]` float32, interpolated linearly (antialiased where the voxels are the coarser grid).
    """
    return resize_slices(logits, shape)

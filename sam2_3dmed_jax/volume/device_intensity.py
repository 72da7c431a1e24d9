"""Preprocessing of grey slices on the device: the host's formula, traced into compiled programs.

Slices are uploaded as they are stored, so that the host neither resizes nor normalises them. On CPU, the results differ
from the host's (`intensity.prepare_slices`) by the order in which XLA and BLAS sum a product: at most 4 ulps of 1.
"""

from __future__ import annotations

import jax
import numpy as np

from sam2_3dmed_jax.volume.intensity import resize_by_matrices, window_and_resize

# Dtypes of slices that are uploaded as they are. Others become float32 on the host, as `prepare_slices` converts them.
SMALL_DTYPES = frozenset(np.dtype(name) for name in ("int8", "uint8", "int16", "uint16"))


def to_upload(grey: np.ndarray) -> np.ndarray:
    """Return slices `[..., H, W]` in the dtype in which they are uploaded: their own if it is small, else float32."""
    return grey if grey.dtype in SMALL_DTYPES else np.asarray(grey, np.float32)


def prepare(
    grey: jax.Array,
    low: jax.Array | np.float32,
    width: jax.Array | np.float32,
    vertical: jax.Array | None,
    horizontal: jax.Array | None,
) -> jax.Array:
    """Window, resize and clip slices in a traced function.

    The window and the matrices are arguments, so that another window needs no compilation; H and W are static.

    Args:
        grey: `[..., H, W]`, see `to_upload`.
        low: float32 scalar, the lower end of the window, see `intensity.window_ends`.
        width: float32 scalar, its width.
        vertical: float32 `[S, H]`, see `intensity.resize_matrices`; None if the slices have their size already.
        horizontal: float32 `[W, S]`; None if `vertical` is None.

    Returns:
        `[..., S, S]` float32 in [0, 1]; `runtime.imagenet.normalise` adds the channels.
    """
    with jax.default_matmul_precision("highest"):
        return window_and_resize(grey, low, width, vertical, horizontal)


def resize(slices: jax.Array, vertical: jax.Array | None, horizontal: jax.Array | None) -> jax.Array:
    """Resize slices `[..., h, w]` to float32 `[..., H, W]` in a traced function, with matrices as in `prepare`."""
    with jax.default_matmul_precision("highest"):
        return resize_by_matrices(slices.astype(np.float32), vertical, horizontal)

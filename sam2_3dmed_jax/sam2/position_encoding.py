"""Position encodings of SAM 2 (`position_encoding.py`): sine, random Fourier, 1D sine of offsets, and 2D RoPE.

All are float32 at the highest matmul precision; in bfloat16 a click would move by a pixel at 1024 px.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from sam2_3dmed_jax.sam2.layers import parameter, with_leading_axes

TEMPERATURE = 10_000.0


def sine_position(h: int, w: int, channels: int) -> np.ndarray:
    """Return upstream's normalised `PositionEmbeddingSine`, float32 `[h, w, channels]`.

    Cells are numbered 1 to h and divided by h (not their centres), and y channels come before x channels.
    """
    half = channels // 2
    index = np.arange(half, dtype=np.float32)
    period = np.float32(TEMPERATURE) ** (2 * np.floor(index / 2) / half)

    def encode(n: int) -> np.ndarray:
        position = np.arange(1, n + 1, dtype=np.float32) / (np.float32(n) + np.float32(1e-6)) * np.float32(2 * np.pi)
        angle = position[:, None] / period
        return np.where(index % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)

    y = np.broadcast_to(encode(h)[:, None, :], (h, w, half))
    x = np.broadcast_to(encode(w)[None, :, :], (h, w, half))
    return np.concatenate([y, x], axis=-1)


def sine_position_1d(positions: jax.Array, channels: int) -> jax.Array:
    """Return sines, then cosines, of `positions [...]` (`get_1d_sine_pe`), float32 `[..., channels]`."""
    half = channels // 2
    index = jnp.arange(half, dtype=jnp.float32)
    period = TEMPERATURE ** (2 * jnp.floor(index / 2) / half)
    angle = positions[..., None] / with_leading_axes(period, positions.ndim + 1)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class PositionEmbeddingRandom(nnx.Module):
    """Random Fourier features of coordinates in [0, 1] (SAM); the matrix is part of checkpoints and never trained."""

    def __init__(self, channels: int):
        self.positional_encoding_gaussian_matrix = parameter(2, channels // 2)

    def encode(self, xy: jax.Array) -> jax.Array:
        """Encode `xy [..., 2]` in [0, 1] as float32 `[..., channels]`."""
        matrix = self.positional_encoding_gaussian_matrix[...]
        angle = 2 * jnp.pi * jnp.matmul(2 * xy - 1, matrix, precision=lax.Precision.HIGHEST)
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)

    def grid(self, h: int, w: int) -> jax.Array:
        """Encode the cell centres of an `h x w` grid. Returns float32 `[h, w, channels]`."""
        y, x = jnp.meshgrid((jnp.arange(h) + 0.5) / h, (jnp.arange(w) + 0.5) / w, indexing="ij")
        return self.encode(jnp.stack([x, y], axis=-1))


def rope_tables(h: int, w: int, channels: int, theta: float = 10_000.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines and sines of axial 2D RoPE (`compute_axial_cis`), each float32 `[h * w, channels // 2]`.

    The first half of the channel pairs is rotated by x, the second half by y.
    """
    frequency = 1.0 / theta ** (np.arange(0, channels, 4, dtype=np.float32)[: channels // 4] / np.float32(channels))
    y, x = np.divmod(np.arange(h * w, dtype=np.float32), np.float32(w))
    angle = np.concatenate([x[:, None] * frequency, y[:, None] * frequency], axis=-1).astype(np.float32)
    return np.cos(angle), np.sin(angle)


def apply_rope(x: jax.Array, cos: np.ndarray, sin: np.ndarray) -> jax.Array:
    """Rotate channel pairs of `x [..., N, C]` by tables `[N, C // 2]`, in float32.

    Upstream pairs neighbouring channels. Here the channels are in half-split order (`half_split_order`): the first
    members of all pairs, then the second ones. A CPU's vectors and a TPU's lanes read them without a stride.
    """
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    c, s = with_leading_axes(cos, x.ndim), with_leading_axes(sin, x.ndim)
    return jnp.concatenate([a * c - b * s, a * s + b * c], axis=-1).astype(x.dtype)


def half_split_order(x: jax.Array) -> jax.Array:
    """Reorder the channels of `x [..., C]` from neighbouring pairs to half-split: 0, 2, 4, ..., 1, 3, 5, ...."""
    return jnp.concatenate([x[..., ::2], x[..., 1::2]], axis=-1)

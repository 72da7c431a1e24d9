"""Corrective clicks inside compiled steps: one pixel of the error of a predicted mask, with static shapes.

The rules are those of SAM 2's training (`sam2/modeling/sam2_utils.py`): `sample_random_points_from_errors`, a uniform
draw from all wrong pixels, and `sample_one_point_from_error_center`, the deepest point of the missed or of the excess
region. Where nothing is wrong, a click is outside of the object, as there. The simulated user of evaluations works on
whole volumes, on the host (`prompts.error_clicks`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class ErrorClicks(NamedTuple):
    """One click per row."""

    coords: jax.Array  # float32 [R, 2]: (x, y), pixels
    inside: jax.Array  # bool [R]: on a missed pixel, so that the click is positive


def draw_error_clicks(predicted: jax.Array, reference: jax.Array, draw: jax.Array) -> ErrorClicks:
    """Place one click in the error of each mask.

    Args:
        predicted: bool `[R, H, W]`.
        reference: bool `[R, H, W]`.
        draw: float32 `[R]`: in [0, 1), the place of the click among the wrong pixels; negative: the deepest point.
    """
    wrong = predicted != reference
    right = ~wrong.any((1, 2))
    # Without an error, any pixel of the background, or of an object that fills the slice.
    background = jnp.where(reference.all((1, 2), keepdims=True), reference, ~reference)
    candidates = jnp.where(right[:, None, None], background, wrong)
    uniform = _pixel_of_rank(candidates, draw)
    pixels = lax.cond((draw < 0).any(), _deepest, lambda *_: uniform, candidates, reference)
    pixels = jnp.where((draw < 0)[:, None], pixels, uniform)
    rows = jnp.arange(len(pixels))
    return ErrorClicks(pixels[:, ::-1].astype(jnp.float32), reference[rows, pixels[:, 0], pixels[:, 1]])


def _pixel_of_rank(candidates: jax.Array, draw: jax.Array) -> jax.Array:
    """Return the pixel (y, x) of rank `draw * count` among the candidates in row order, int32 `[R, 2]`."""
    per_row = candidates.sum(2, dtype=jnp.int32)  # [R, H]
    total = per_row.sum(1)
    rank = jnp.clip((draw * total).astype(jnp.int32), 0, total - 1)
    until = jnp.cumsum(per_row, 1)
    y = jnp.argmax(until > rank[:, None], axis=1)
    rows = jnp.arange(len(y))
    rank = rank - (until[rows, y] - per_row[rows, y])
    x = jnp.argmax(jnp.cumsum(candidates[rows, y], 1, dtype=jnp.int32) > rank[:, None], axis=1)
    return jnp.stack([y, x], 1).astype(jnp.int32)


def _deepest(candidates: jax.Array, reference: jax.Array) -> jax.Array:
    """Return the deepest pixel (y, x) of the missed or excess region, int32 `[R, 2]`; the first in row order."""
    missed, excess = candidates & reference, candidates & ~reference
    # Regions of both kinds can touch, so that each has its own distances.
    depth = jnp.maximum(squared_depth(missed), squared_depth(excess))
    flat = depth.reshape(len(depth), -1).argmax(1)
    return jnp.stack(jnp.divmod(flat, depth.shape[2]), 1).astype(jnp.int32)


def squared_depth(regions: jax.Array) -> jax.Array:
    """Return the exact squared Euclidean distance to the nearest pixel outside of the region, 0 outside.

    All pixels beyond the image count as outside. Distances along columns come from two cumulative maxima; the distance
    in the plane is the lower envelope of their parabolas (Felzenszwalb and Huttenlocher 2012), here as a minimum over
    all columns, which has static shapes and fuses into one reduction.

    Args:
        regions: bool `[R, H, W]`.

    Returns:
        int32 `[R, H, W]`.
    """
    _, height, width = regions.shape
    outside = jnp.pad(~regions, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    y = jnp.arange(height + 2, dtype=jnp.int32)[None, :, None]
    above = y - lax.cummax(jnp.where(outside, y, -(height + width)), axis=1)
    below = lax.cummin(jnp.where(outside, y, 2 * (height + width)), axis=1, reverse=True) - y
    column = jnp.square(jnp.minimum(above, below))  # [R, H + 2, W + 2]
    x = jnp.arange(width + 2, dtype=jnp.int32)
    across = jnp.square(x[:, None] - x[None, :])
    squared = (column[:, :, None, :] + across[None, None]).min(-1)
    return squared[:, 1:-1, 1:-1]

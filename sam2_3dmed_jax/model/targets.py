"""Training targets of SRPP and BD: relative slice positions and boundaries of masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sam2_3dmed_jax.config import SrppConfig


def positions_of(batch: Mapping[str, Any], config: SrppConfig) -> Any:
    """The positions `[B, D]` that a batch's targets are made of: volume slice indices or mm."""
    return batch["position_mm"] if config.unit == "mm" else batch["slice_index"]


def srpp_targets(positions: jax.Array, scale: float) -> jax.Array:
    """`GT_pos[i, j] = position_j - position_i`, signed superior, over `scale`: `[B, D]` to `[B, D, D]`.

    Positions are volume slice indices or mm (never clip indices), so the target of a pair of source slices depends
    neither on walking direction nor on the stride (paper's `j - i`; physical positions: ours).
    """
    return (positions[:, None, :] - positions[:, :, None]) / scale


def boundary_target(mask: jax.Array, width: int) -> jax.Array:
    """Morphological gradient, dilation minus erosion by a square of `width` pixels: `[..., H, W]` in {0, 1}."""
    window = (1,) * (mask.ndim - 2) + (width, width)
    strides = (1,) * mask.ndim
    mask = mask.astype(jnp.float32)
    dilated = lax.reduce_window(mask, -jnp.inf, lax.max, window, strides, "SAME")
    eroded = lax.reduce_window(mask, jnp.inf, lax.min, window, strides, "SAME")
    return dilated - eroded

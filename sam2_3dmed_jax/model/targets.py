"""Training targets of SRPP and BD: relative slice positions and boundaries of masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sam2_3dmed_jax.config import SrppConfig


def positions_of(batch: Mapping[str, Any], config: SrppConfig) -> Any:
    """Return the positions `[B, D]` of a batch's slices in `config.unit`: volume slice indices or mm."""
    return batch["position_mm"] if config.unit == "mm" else batch["slice_index"]


def srpp_targets(positions: jax.Array, scale: float) -> jax.Array:
    """Return `GT_pos[i, j] = (position_j - position_i) / scale`, positive towards superior: `[B, D]` to `[B, D, D]`.

    Positions are volume slice indices or mm, never clip indices, so the target of a pair of slices depends neither on
    the direction of propagation nor on the stride (paper: `j - i`; positions in mm are ours).
    """
    return (positions[:, None, :] - positions[:, :, None]) / scale


def boundary_target(mask: jax.Array, width: int) -> jax.Array:
    """Return the morphological gradient of `mask [..., H, W]`: dilation minus erosion by a square of `width` pixels."""
    window = (1,) * (mask.ndim - 2) + (width, width)
    strides = (1,) * mask.ndim
    mask = mask.astype(jnp.float32)
    dilated: jax.Array = lax.reduce_window(mask, -jnp.inf, lax.max, window, strides, "SAME")
    eroded: jax.Array = lax.reduce_window(mask, jnp.inf, lax.min, window, strides, "SAME")
    return dilated - eroded

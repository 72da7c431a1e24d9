"""Pictures of what the model makes of a batch: masks, boundaries and the matrix of relative positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.model.targets import boundary_target, positions_of, srpp_targets

CLIPS = 4  # that are drawn, at most; of each its first object
CELL = 16  # pixels of a pair of slices
GREEN, RED = (0, 200, 0), (255, 60, 60)


class Shown(NamedTuple):
    """What is drawn of walked clips; R = B x K rows."""

    mask_logits: jax.Array  # float32 [D, R, S/4, S/4]: gated and chosen
    boundary_logits: jax.Array | None  # [D, R, S/4, S/4], with BD
    positions: jax.Array | None  # P_pos [B, D, D], with SRPP


def pictures(batch: Mapping[str, np.ndarray], seen: Shown, model: ModelConfig) -> dict[str, np.ndarray]:
    """Each picture by name, uint8 `[H, W, 3]`; a clip is a band, its slices stand side by side.

    `masks`: the reference's outline in green, the model's in red. `boundaries`: predicted above, target below.
    `positions`: predicted `P_pos[i, j]` on the left, target on the right, red positive.

    Args:
        batch: on the host, `[B, ...]`; with `slices`.
        seen: of that batch.
        model: its modules' targets.
    """
    k = batch["masks"].shape[2]
    found: dict[str, np.ndarray] = jax.device_get(seen)._asdict()
    chosen = range(min(CLIPS, len(batch["masks"])))
    masks = [
        _masks(batch["slices"][b], batch["masks"][b, :, 0] > 0, found["mask_logits"][:, b * k] > 0) for b in chosen
    ]
    drawn = {"masks": np.concatenate(masks)}
    if seen.boundary_logits is not None:
        drawn["boundaries"] = np.concatenate(
            [
                _boundaries(found["boundary_logits"][:, b * k], batch["masks"][b, :, 0], model.boundary.width)
                for b in chosen
            ]
        )
    if seen.positions is not None:
        srpp = model.slice_position
        targets = np.asarray(srpp_targets(jnp.asarray(positions_of(batch, srpp)), srpp.scale))
        drawn["positions"] = np.concatenate([_matrices(found["positions"][b], targets[b]) for b in chosen])
    return drawn


def _masks(slices: np.ndarray, reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return outlined(slices, reference, _enlarged(predicted, slices.shape[-1]))


def outlined(slices: np.ndarray, reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Slices `[n, H, W]` side by side, the outline of the reference in green and of the prediction in red."""
    colours = np.repeat((np.clip(slices, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=-1)  # [n, H, W, 3]
    colours[_outline(reference)] = GREEN
    colours[_outline(predicted)] = RED
    return _side_by_side(colours)


def _boundaries(logits: np.ndarray, reference: np.ndarray, width: int) -> np.ndarray:
    target = np.asarray(boundary_target(jnp.asarray(reference, jnp.float32), width))
    predicted = _enlarged(np.asarray(jax.nn.sigmoid(logits.astype(np.float32))), target.shape[-1])
    both = np.concatenate([predicted, target], axis=1)  # one below the other
    return _side_by_side(np.repeat((both * 255).astype(np.uint8)[..., None], 3, axis=-1))


def _matrices(predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    most = max(float(np.abs(target).max()), 1e-6)
    both = np.concatenate([predicted, np.zeros((len(target), 1)), target], axis=1) / most
    fade = (255 * (1 - np.clip(np.abs(both), 0, 1))).astype(np.uint8)
    full = np.full_like(fade, 255)
    colours = np.where((both > 0)[..., None], np.stack([full, fade, fade], -1), np.stack([fade, fade, full], -1))
    return np.kron(colours, np.ones((CELL, CELL, 1), np.uint8))


def _outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of bool `[D, H, W]` with a neighbour outside."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    inner = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    return mask & ~inner


def _enlarged(maps: np.ndarray, size: int) -> np.ndarray:
    factor = size // maps.shape[-1]
    return np.repeat(np.repeat(maps, factor, axis=-2), factor, axis=-1)


def _side_by_side(slices: np.ndarray) -> np.ndarray:
    """`[D, H, W, 3]` to `[H, D W, 3]`."""
    d, height, width, _ = slices.shape
    return np.moveaxis(slices, 0, 1).reshape(height, d * width, 3)

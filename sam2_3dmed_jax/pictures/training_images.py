"""Training images for TensorBoard: predicted masks, boundaries and relative positions next to their targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.model.targets import boundary_target, positions_of, srpp_targets

CLIPS = 4  # maximum number of clips in an image; only the first object of each is drawn
CELL = 16  # pixels per side of a pair of slices
GREEN, RED = (0, 200, 0), (255, 60, 60)


class ClipPredictions(NamedTuple):
    """The outputs of a model for a batch of clips that are drawn; R = B x K rows."""

    mask_logits: jax.Array  # float32 [D, R, S/4, S/4]: the chosen mask, gated by the object score
    boundary_logits: jax.Array | None  # [D, R, S/4, S/4], with BD
    positions: jax.Array | None  # P_pos [B, D, D], with SRPP


def clip_images(
    batch: Mapping[str, np.ndarray], predictions: ClipPredictions, model: ModelConfig
) -> dict[str, np.ndarray]:
    """Return images by name, uint8 `[H, W, 3]`; each clip is a band of its slices side by side.

    `masks`: the outline of the reference in green, of the prediction in red. `boundaries`: the prediction above, the
    target below. `positions`: the predicted `P_pos[i, j]` on the left, the target on the right; positive is red.

    Args:
        batch: on the host, `[B, ...]`; with `slices`.
        predictions: of the batch.
        model: with the settings of the targets.
    """
    k = batch["masks"].shape[2]
    outputs: dict[str, np.ndarray] = jax.device_get(predictions)._asdict()
    chosen = range(min(CLIPS, len(batch["masks"])))
    size = batch["slices"].shape[-1]
    masks = [
        outline_image(
            batch["slices"][b], batch["masks"][b, :, 0] > 0, _enlarge(outputs["mask_logits"][:, b * k] > 0, size)
        )
        for b in chosen
    ]
    images = {"masks": np.concatenate(masks)}
    if predictions.boundary_logits is not None:
        boundaries = [
            _boundary_image(outputs["boundary_logits"][:, b * k], batch["masks"][b, :, 0], model.boundary.width)
            for b in chosen
        ]
        images["boundaries"] = np.concatenate(boundaries)
    if predictions.positions is not None:
        srpp = model.slice_position
        targets = np.asarray(srpp_targets(jnp.asarray(positions_of(batch, srpp)), srpp.scale))
        images["positions"] = np.concatenate([_matrix_image(outputs["positions"][b], targets[b]) for b in chosen])
    return images


def outline_image(slices: np.ndarray, reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return slices side by side, with the outline of the reference in green and of the prediction in red.

    Args:
        slices: `[n, H, W]` in [0, 1].
        reference: bool `[n, H, W]`.
        predicted: bool `[n, H, W]`.
    """
    colours = np.repeat((np.clip(slices, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=-1)  # [n, H, W, 3]
    colours[_outline(reference)] = GREEN
    colours[_outline(predicted)] = RED
    return _side_by_side(colours)


def _boundary_image(logits: np.ndarray, reference: np.ndarray, width: int) -> np.ndarray:
    target = np.asarray(boundary_target(jnp.asarray(reference, jnp.float32), width))
    predicted = _enlarge(np.asarray(jax.nn.sigmoid(logits.astype(np.float32))), target.shape[-1])
    both = np.concatenate([predicted, target], axis=1)  # one below the other
    return _side_by_side(np.repeat((both * 255).astype(np.uint8)[..., None], 3, axis=-1))


def _matrix_image(predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    maximum = max(float(np.abs(target).max()), 1e-6)
    both = np.concatenate([predicted, np.zeros((len(target), 1)), target], axis=1) / maximum
    fade = (255 * (1 - np.clip(np.abs(both), 0, 1))).astype(np.uint8)
    full = np.full_like(fade, 255)
    colours = np.where((both > 0)[..., None], np.stack([full, fade, fade], -1), np.stack([fade, fade, full], -1))
    return np.kron(colours, np.ones((CELL, CELL, 1), np.uint8))


def _outline(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of bool `[D, H, W]` that have a neighbour outside the mask."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    inner = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    return mask & ~inner


def _enlarge(maps: np.ndarray, size: int) -> np.ndarray:
    """Repeat the pixels of square maps to `size` pixels per side."""
    factor = size // maps.shape[-1]
    return np.repeat(np.repeat(maps, factor, axis=-2), factor, axis=-1)


def _side_by_side(slices: np.ndarray) -> np.ndarray:
    """`[D, H, W, 3]` to `[H, D W, 3]`."""
    d, height, width, _ = slices.shape
    return np.moveaxis(slices, 0, 1).reshape(height, d * width, 3)

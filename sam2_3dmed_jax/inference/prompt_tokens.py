"""Prompts of a slice as the token arrays of SAM 2's prompt encoder."""

from __future__ import annotations

import numpy as np

from sam2_3dmed_jax.inference.shape_buckets import token_room
from sam2_3dmed_jax.prompts.prompt import Prompt
from sam2_3dmed_jax.sam2.prompt_encoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NOT_A_POINT, PromptTokens


def prompt_tokens(prompt: Prompt, image_size: int, previous: np.ndarray | None = None) -> PromptTokens:
    """Return the tokens of points and a box in the reference's order: box corners, points, one `NOT_A_POINT`.

    Their number does not depend on the prompt (`shape_buckets`), and a dense prompt is always there, so that all
    prompts share a compiled program; padding tokens, and a missing dense prompt, are masked out.

    Args:
        prompt: without a mask.
        image_size: S, pixels.
        previous: float32 `[S/4, S/4]`, earlier logits of the slice as a dense prompt, or None.

    Returns:
        The tokens of one row.
    """
    points, point_labels = list(prompt.points), list(prompt.labels)
    if prompt.box is not None:
        points = [prompt.box[:2], prompt.box[2:], *points]
        point_labels = [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT, *point_labels]
    count = len(points) + 1
    room = token_room(count)
    coords = np.zeros((1, room, 2), np.float32)
    labels = np.full((1, room), NOT_A_POINT, np.int32)
    coords[0, : count - 1], labels[0, : count - 1] = points, point_labels
    dense = np.zeros((image_size // 4, image_size // 4), np.float32) if previous is None else previous
    return PromptTokens(
        coords,  # type: ignore[arg-type]
        labels,  # type: ignore[arg-type]
        np.arange(room)[None] < count,  # type: ignore[arg-type]
        # A single click is ambiguous: SAM 2 then chooses among three candidate masks. A box counts as two points.
        np.array([count <= 2]),  # type: ignore[arg-type]
        dense[None],  # type: ignore[arg-type]
        np.array([previous is not None]),  # type: ignore[arg-type]
    )

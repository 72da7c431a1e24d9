"""Batches of prompts as the token arrays of SAM 2's prompt encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sam2_3dmed_jax.inference.padding import next_power_of_two
from sam2_3dmed_jax.prompts.prompt import Prompt
from sam2_3dmed_jax.sam2.prompt_encoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NOT_A_POINT, PromptTokens


def prompt_tokens(prompt: Prompt) -> tuple[list[tuple[float, float]], list[int]]:
    """Return the token coordinates and labels in the reference's order: box corners, points, one `NOT_A_POINT`."""
    coords, labels = list(prompt.points), list(prompt.labels)
    if prompt.box is not None:
        coords = [prompt.box[:2], prompt.box[2:], *coords]
        labels = [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT, *labels]
    return [*coords, (0.0, 0.0)], [*labels, NOT_A_POINT]


def batch_prompts(prompts: Sequence[Prompt], rows: int, previous: np.ndarray | None = None) -> PromptTokens:
    """Batch point and box prompts into `rows` rows; padding rows and padding tokens are masked out.

    Args:
        prompts: without masks.
        rows: at least the number of prompts.
        previous: float32 `[rows, S/4, S/4]`, earlier logits of these slices as a dense prompt, or None.
    """
    tokens = [prompt_tokens(prompt) for prompt in prompts]
    width = next_power_of_two(max(len(labels) for _, labels in tokens))
    coords = np.zeros((rows, width, 2), np.float32)
    labels = np.full((rows, width), NOT_A_POINT, np.int32)
    valid = np.zeros((rows, width), bool)
    valid[:, 0] = True  # Attention needs at least one valid token in padding rows too.
    for row, (row_coords, row_labels) in enumerate(tokens):
        count = len(row_labels)
        coords[row, :count], labels[row, :count], valid[row, :count] = row_coords, row_labels, True
    # A single click is ambiguous: SAM 2 then chooses among three candidate masks. A box counts as two points.
    multimask = np.array([len(row_labels) - 1 <= 1 for _, row_labels in tokens] + [True] * (rows - len(tokens)))
    if previous is None:
        return PromptTokens(coords, labels, valid, multimask)  # type: ignore[arg-type]
    return PromptTokens(coords, labels, valid, multimask, previous, np.ones(rows, bool))  # type: ignore[arg-type]

"""Intensity window of a picture: as given, or one that shows what was prompted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sam2_3dmed_jax.config import DEFAULT_CT_WINDOW
from sam2_3dmed_jax.pictures.view import prompt_places
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import Window, parse_window, window_of
from sam2_3dmed_jax.volume.modality import CT

AROUND_MM = 15.0  # half width of the square around a prompt whose values choose the window


def display_window(
    volume: Volume,
    prompts: Sequence[VoxelPrompt] = (),
    window: str = DEFAULT_CT_WINDOW,
    given: str | None = None,
) -> Window:
    """Return the window of the pictures of a volume.

    A window is useless where most of what surrounds the prompts is black or white. In CT, the lung window is used
    instead if the median around the prompts is below `window`, and the bone window if it is above.

    Args:
        volume: the scan.
        prompts: of all objects.
        window: the window that the model sees, as `window_of`.
        given: the user's choice, in the volume's own values for every modality; None: the rule above.

    Returns:
        (level, width) in the volume's own values.

    Raises:
        UserError: `given` is not a window.
    """
    if given:
        return window_of(volume, given, "--window") if "%" in given else parse_window(given, "--window")
    level, width = window_of(volume, window)
    values = _values_around(volume, prompts)
    if volume.modality != CT or not values.size:
        return level, width
    median = float(np.median(values))
    if median < level - width / 2:
        return parse_window("lung")
    return parse_window("bone") if median > level + width / 2 else (level, width)


def _values_around(volume: Volume, prompts: Sequence[VoxelPrompt]) -> np.ndarray:
    """Return the values in a square around each point, box centre and mask centre, on its slice."""
    values = [np.zeros(0, np.float32)]
    steps = [max(round(AROUND_MM / step), 1) for step in volume.spacing[1:]]
    for prompt in prompts:
        for _, h, w in prompt_places(prompt):
            places = zip((round(h), round(w)), steps, strict=True)
            rows, columns = (slice(max(place - step, 0), place + step + 1) for place, step in places)
            values.append(volume.array[prompt.slice, rows, columns].reshape(-1))
    return np.concatenate(values)

"""Growing clips: D of the clips of each training step, from `data.slices_schedule`.

Short clips train fast at first; long ones teach propagation over many slices and the end of an object.
"""

from __future__ import annotations

import itertools

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.errors import UserError


def clip_length(config: DataConfig, step: int) -> int:
    """Return D of the clips of a step, counted from 0."""
    begun = [slices for first, slices in config.slices_schedule if first <= step]
    return begun[-1] if begun else config.slices


def clip_lengths(config: DataConfig) -> tuple[int, ...]:
    """Return all D of a run in ascending order, each of which compiles the train step once."""
    return tuple(sorted({config.slices, *(slices for _, slices in config.slices_schedule)}))


def check_clip_lengths(config: DataConfig) -> None:
    """Check a schedule.

    Raises:
        UserError: it does not start at step 0, its steps do not ascend, a clip is shorter than 2 slices, or the last
            clips do not have `data.slices` slices.
    """
    schedule = config.slices_schedule
    if not schedule:
        return
    steps, lengths = zip(*schedule, strict=True)
    if steps[0] != 0 or any(later <= first for first, later in itertools.pairwise(steps)):
        raise UserError(
            f"data.slices_schedule: its steps are {', '.join(map(str, steps))}; start at step 0 and let them ascend"
        )
    if min(lengths) < 2:
        raise UserError(f"data.slices_schedule: a clip of {min(lengths)} slices; use 2 or more")
    if lengths[-1] != config.slices:
        raise UserError(
            f"data.slices_schedule: it ends with {lengths[-1]} slices, but data.slices is {config.slices}; use one"
        )

"""Undo and redo of prompts: a stack of immutable states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sam2_3dmed_jax.prompts.simulation import box_of
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt, merge_prompts

# Slices on either side of a correction whose drawn masks are left out, so that the correction reaches them.
CORRECTED_SLICES = 4
MAX_STATES = 200  # that are kept for `undo`, so that memory does not grow with the number of clicks


@dataclass(frozen=True, eq=False)
class PromptState:
    """All prompts of a scan after one change.

    Attributes:
        prompts: in the order in which they were given; each has points, a box or a mask.
        latest: the object and the canonical slice that the change was about; None if no prompt was added.
    """

    prompts: tuple[VoxelPrompt, ...] = ()
    latest: tuple[int, int] | None = None

    def with_prompts(self, new: Sequence[VoxelPrompt], corrects_masks: bool = False) -> PromptState:
        """Return the state after further prompts.

        On a slice, a box replaces the earlier box of the object, and a mask replaces all of its earlier prompts.

        Args:
            new: the prompts.
            corrects_masks: clicks may be on slices with masks, see `_with_corrected_masks`.

        Raises:
            UserError: a click on a slice with a mask that it does not correct, or too many points on one slice.
        """
        if corrects_masks:
            return self._with_corrected_masks(new).with_prompts(new)
        boxes = {(prompt.object_id, prompt.slice) for prompt in new if prompt.box is not None}
        masks = {(prompt.object_id, prompt.slice) for prompt in new if prompt.mask is not None}
        kept = [
            prompt
            for prompt in self.prompts
            if (key := (prompt.object_id, prompt.slice)) not in masks and not (prompt.box is not None and key in boxes)
        ]
        prompts = (*kept, *new)
        merge_prompts(prompts)  # refuses prompts that cannot be combined
        middle = new[len(new) // 2]
        return PromptState(prompts, (middle.object_id, middle.slice))

    def _with_corrected_masks(self, corrections: Sequence[VoxelPrompt]) -> PromptState:
        """Return the state with less of the masks that the model would keep as they are near the corrections.

        The mask on the slice of a correction becomes its box, unless the correction has one; the masks of the object on
        the slices next to it are left out.
        """
        kept = []
        for prompt in self.prompts:
            near = [
                (abs(new.slice - prompt.slice), new)
                for new in corrections
                if new.object_id == prompt.object_id and abs(new.slice - prompt.slice) <= CORRECTED_SLICES
            ]
            if prompt.mask is None or not near:
                kept.append(prompt)
            elif not any(distance == 0 for distance, _ in near):
                continue
            elif not any(distance == 0 and new.box is not None for distance, new in near):
                kept.append(replace(prompt, box=box_of(prompt.mask), mask=None, mask_file=None))
        return PromptState(tuple(kept), self.latest)

    def prompts_of(self, object_id: int) -> tuple[VoxelPrompt, ...]:
        """Return the prompts of one object."""
        return tuple(prompt for prompt in self.prompts if prompt.object_id == object_id)

    def without_object(self, object_id: int) -> PromptState:
        """Return the state without the prompts of one object."""
        return PromptState(tuple(prompt for prompt in self.prompts if prompt.object_id != object_id))


class History:
    """The states of a scan, one of which is current."""

    def __init__(self) -> None:
        """Start without prompts."""
        self._states = [PromptState()]
        self._position = 0

    @property
    def current(self) -> PromptState:
        """The state that masks are computed from."""
        return self._states[self._position]

    @property
    def can_undo(self) -> bool:
        """Whether there is a state before the current one."""
        return self._position > 0

    @property
    def can_redo(self) -> bool:
        """Whether there is a state that was undone."""
        return self._position + 1 < len(self._states)

    def push(self, state: PromptState) -> None:
        """Make a state the current one; states that were undone, and the oldest of too many, are dropped."""
        del self._states[self._position + 1 :]
        self._states = [*self._states, state][-MAX_STATES:]
        self._position = len(self._states) - 1

    def undo(self) -> bool:
        """Return to the state before; False if the current one is the first."""
        if not self.can_undo:
            return False
        self._position -= 1
        return True

    def redo(self) -> bool:
        """Return to the state that was undone last; False if the current one is the latest."""
        if not self.can_redo:
            return False
        self._position += 1
        return True

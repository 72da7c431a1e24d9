"""Undo and redo of prompts: a stack of immutable states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt, merge_prompts


@dataclass(frozen=True, eq=False)
class PromptState:
    """All prompts of a scan after one change.

    Attributes:
        prompts: in the order in which they were given; each has points, a box or a mask.
        latest: the object and the canonical slice that the change was about; None if no prompt was added.
    """

    prompts: tuple[VoxelPrompt, ...] = ()
    latest: tuple[int, int] | None = None

    def with_prompts(self, new: Sequence[VoxelPrompt]) -> PromptState:
        """Return the state after further prompts.

        On a slice, a box replaces the earlier box of the object, and a mask replaces all of its earlier prompts.

        Raises:
            UserError: a click on a slice with a mask, or too many points on one slice.
        """
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

    def push(self, state: PromptState) -> None:
        """Make a state the current one; states that were undone are dropped."""
        del self._states[self._position + 1 :]
        self._states.append(state)
        self._position += 1

    def undo(self) -> bool:
        """Return to the state before; False if the current one is the first."""
        if self._position == 0:
            return False
        self._position -= 1
        return True

    def redo(self) -> bool:
        """Return to the state that was undone last; False if the current one is the latest."""
        if self._position + 1 == len(self._states):
            return False
        self._position += 1
        return True

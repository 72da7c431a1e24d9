"""Session messages: changes that messages of a front end ask for, and messages about events of the session.

The page of the server and the widget for notebooks share them. This module needs none of the server's packages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import message_line
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.scan.scan import Scan
from sam2_3dmed_jax.server.events import (
    Closed,
    Event,
    Failed,
    ProgressMade,
    SessionState,
    SliceChanged,
    StateChanged,
)
from sam2_3dmed_jax.server.page.display_grid import DisplayGrid
from sam2_3dmed_jax.server.page.messages import (
    MAX_OBJECTS,
    Box,
    Clear,
    Click,
    Draw,
    Message,
    Name,
    Redo,
    Scribble,
    Undo,
    slice_update,
)


def change_of(message: Message, grid: DisplayGrid) -> Callable[[Scan], Any]:
    """Return the change of a scan that a message asks for, in voxels of the file."""
    match message:
        case Click(object=number, voxel=voxel, inside=inside):
            return lambda scan: scan.click(grid.to_file(voxel), inside, object=number, corrects_masks=True)
        case Box(object=number, first=first, second=second):
            return lambda scan: scan.box(grid.to_file(first), grid.to_file(second), object=number, corrects_masks=True)
        case Scribble(object=number, z=z, inside=inside_strokes, outside=outside_strokes):
            strokes = [_volume(grid, z, mask) for mask in (inside_strokes, outside_strokes)]
            return lambda scan: scan.scribble(*strokes, object=number, corrects_masks=True)
        case Draw(object=number, z=z, mask=mask):
            return lambda scan: scan.draw(_volume(grid, z, mask), object=number)
        case Undo():
            return Scan.undo
        case Redo():
            return Scan.redo
        case Clear(object=cleared):
            return lambda scan: scan.clear(cleared)
        case Name(object=number, name=name, color=color):
            return lambda scan: scan.name_object(number, name, color)
    raise AssertionError(f"{type(message).__name__} changes no prompts")


def _volume(grid: DisplayGrid, z: int, mask: np.ndarray | None) -> np.ndarray | None:
    return None if mask is None else grid.volume_of_file({z: mask})


class EventMessages:
    """Messages about the events of a session, for one front end. Prompts are in the first state that has them."""

    def __init__(self, grid: DisplayGrid, slice_axis: int):
        """Begin before the front end has prompts.

        Args:
            grid: of the image in the front end.
            slice_axis: as `Scan.slice_axis`.
        """
        self._grid = grid
        self._slice_axis = slice_axis
        self._revision = -1  # of the prompts that the front end has

    def about(self, event: Event) -> dict[str, Any] | bytes | None:
        """Return the fields of a JSON message, or a slice of a mask in binary; None: its object cannot be shown."""
        match event:
            case StateChanged(state=state):
                prompts = {} if state.revision == self._revision else {"prompts": _shown(state.prompts, self._grid)}
                self._revision = state.revision
                return _state_message(state) | prompts
            case SliceChanged():
                if event.key.object_id > MAX_OBJECTS:
                    return None
                z, mask = self._grid.slice_of_page(event.mask, self._slice_axis, event.key.slice)
                return slice_update(event.key.object_id, event.revision, z, mask)
            case ProgressMade(what=what, done=done, total=total):
                return {"type": "progress", "what": what, "done": done, "total": total}
            case Failed(message=text):
                return {"type": "error", "message": message_line(text)}
            case Closed():
                message = "The image was closed on the server; open it again, its prompts are kept."
                return {"type": "gone", "message": message}


def _shown(prompts: tuple[VoxelPrompt, ...], grid: DisplayGrid) -> list[dict[str, Any]]:
    """Return all points and boxes, in voxels of the page."""
    shown: list[dict[str, Any]] = []
    for prompt in prompts:
        for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
            voxel = grid.from_slice(prompt.slice, x, y)
            shown.append({"kind": "point", "object": prompt.object_id, "voxel": voxel, "inside": bool(label)})
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box
            first, last = grid.from_slice(prompt.slice, x0, y0), grid.from_slice(prompt.slice, x1, y1)
            shown.append({"kind": "box", "object": prompt.object_id, "first": first, "last": last})
    return shown


def _state_message(state: SessionState) -> dict[str, Any]:
    """Return the message with everything about a session but its prompts and masks."""
    return {
        "type": "state",
        "revision": state.revision,
        "objects": [
            {"id": number, "name": label.name, "color": label.color, "prompted": number in state.prompted}
            for number, label in state.objects.items()
        ],
        "canUndo": state.can_undo,
        "canRedo": state.can_redo,
        "activity": state.activity,
        "complete": state.is_complete,
        "clickSeconds": state.click_seconds,
        "volumes": {str(number): ml for number, ml in state.volumes_ml.items()},
    }

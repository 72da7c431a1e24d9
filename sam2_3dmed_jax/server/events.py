"""Events of an interactive session, and their hand-over from its worker thread to asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel

Activity = Literal["idle", "answering", "propagating", "preparing", "encoding", "reading"]


class SliceKey(NamedTuple):
    """One object on one slice of the image."""

    object_id: int
    slice: int  # index along `Scan.slice_axis`


@dataclass(frozen=True, eq=False)
class SliceChanged:
    """The mask of an object on a slice is another one than before. Slices without an event yet are empty.

    Attributes:
        key: object and slice.
        packed: uint8, the bits of the mask in C order (`np.packbits`).
        shape: of the mask: the two other axes of the image as stored, in their order.
        revision: number of the change of prompts that the mask belongs to.
        is_preview: it is made from the prompts on this slice alone; the final mask follows if it differs.
    """

    key: SliceKey
    packed: np.ndarray
    shape: tuple[int, int]
    revision: int
    is_preview: bool = False

    @property
    def mask(self) -> np.ndarray:
        """Bool, of `shape`."""
        height, width = self.shape
        return np.unpackbits(self.packed, count=height * width).reshape(self.shape).view(bool)


@dataclass(frozen=True)
class SessionState:
    """Everything about a session but its masks.

    Attributes:
        revision: counts changes of prompts, also by undo and redo.
        objects: names and colours of objects, with or without prompts.
        prompts: on canonical slices.
        can_undo: `undo` has an effect.
        can_redo: `redo` has an effect.
        activity: what the worker does.
        is_complete: all slices are segmented from the current prompts.
        click_seconds: from the arrival of the last prompt to its slice; None before the first.
        volumes_ml: of each object, if complete.
    """

    revision: int = 0
    objects: Mapping[int, ObjectLabel] = field(default_factory=dict)
    prompts: tuple[VoxelPrompt, ...] = field(default=(), compare=False)  # `revision` changes with them
    can_undo: bool = False
    can_redo: bool = False
    activity: Activity = "idle"
    is_complete: bool = False
    click_seconds: float | None = None
    volumes_ml: Mapping[int, float] = field(default_factory=dict)

    @property
    def prompted(self) -> frozenset[int]:
        """The ids of the objects that have prompts."""
        return frozenset(prompt.object_id for prompt in self.prompts)


@dataclass(frozen=True)
class StateChanged:
    """The state is another one."""

    state: SessionState


@dataclass(frozen=True)
class ProgressMade:
    """Long work has advanced."""

    what: str  # the work and its unit, such as "encoding slices"
    done: int
    total: int


@dataclass(frozen=True)
class Failed:
    """Work that no request waits for has failed."""

    message: str


@dataclass(frozen=True)
class Closed:
    """The session has ended: no further events follow."""


Event = SliceChanged | StateChanged | ProgressMade | Failed | Closed
Listener = Callable[[Event], None]


class EventStream:
    """Unread events for one asyncio consumer.

    A newer event replaces an unread one about the same thing, so that a slow consumer holds no more than one mask per
    object and slice. Create it in a coroutine, and pass `put` to `InteractiveSession.subscribe`.
    """

    def __init__(self) -> None:
        """Belong to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._unread: dict[object, Event] = {}  # changed on the event loop only
        self._arrived = asyncio.Event()

    def put(self, event: Event) -> None:
        """Add an event, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._add, event)
        except RuntimeError:  # the loop has been closed
            return

    async def take(self) -> list[Event]:
        """Wait for events, and return all that are unread, in the order of their arrival."""
        await self._arrived.wait()
        self._arrived.clear()
        events, self._unread = list(self._unread.values()), {}
        return events

    def _add(self, event: Event) -> None:
        key = _key(event)
        self._unread.pop(key, None)  # to the end
        self._unread[key] = event
        self._arrived.set()


def _key(event: Event) -> object:
    """Return the thing that an event is about."""
    match event:
        case SliceChanged(key=key):
            return key
        case ProgressMade(what=what):
            return what
        case _:
            return type(event)

"""Leases: the state that the server keeps for each connected viewer."""

from __future__ import annotations

import math
import time
import zlib
from dataclasses import dataclass, field

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.server.sessions import BusyError, Sessions
from sam2_3dmed_jax.server.viewers import Viewer, Viewers
from sam2_3dmed_jax.volume.zoom import Zoom

MAX_UNDO = 50  # interactions that can be undone


class UndoStack:
    """Masks before each interaction, compressed."""

    def __init__(self) -> None:
        """Start empty."""
        self._masks: list[tuple[bytes, int]] = []

    def push(self, mask: np.ndarray, steps: int) -> None:
        """Add the mask before an interaction, and the number of `Scan.undo` that take the interaction back."""
        self._masks.append((zlib.compress(np.packbits(mask).data, 1), steps))
        del self._masks[:-MAX_UNDO]

    def pop(self, shape: tuple[int, ...]) -> tuple[np.ndarray, int] | None:
        """Remove and return what was added last; None if nothing is left."""
        if not self._masks:
            return None
        packed, steps = self._masks.pop()
        bits = np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=math.prod(shape))
        return bits.view(bool).reshape(shape), steps

    def clear(self) -> None:
        """Forget all."""
        self._masks.clear()


@dataclass(eq=False)
class Lease(Viewer):
    """A viewer and what it knows of its mask.

    Attributes:
        dtype: of the viewer's buffer.
        mask: bool, what the buffer of the viewer contains; None before the first buffer.
        resend: a reply was lost, so the next one contains the whole mask.
        undo: masks before each interaction.
        zoom: on the object of this viewer; None: as the server was started with.
        seen: time of the last heartbeat.
    """

    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.uint8))
    mask: np.ndarray | None = None
    resend: bool = False
    undo: UndoStack = field(default_factory=UndoStack)
    zoom: Zoom | None = None
    seen: float = field(default_factory=time.monotonic)

    def buffer(self) -> np.ndarray:
        """Return the mask.

        Raises:
            UserError: the viewer has sent no image or no target buffer.
        """
        if self.mask is None:
            raise UserError("the viewer has sent no target buffer yet; send an image and a target buffer first")
        return self.mask


class Leases(Viewers[Lease]):
    """The leases of a server, as many as sessions are allowed."""

    def __init__(self, sessions: Sessions):
        """Start without leases."""
        super().__init__(sessions, "the lease is unknown or has expired; connect again")

    def claim(self) -> Lease:
        """Return a new lease.

        Raises:
            BusyError: there are as many as allowed.
        """
        self.release_idle()
        if len(self) >= self.sessions.settings.max_sessions:
            raise BusyError(f"{len(self)} viewers are connected, the most this server allows")
        return self.add(Lease())

    def remaining_seconds(self, lease: Lease) -> float:
        """Return the time after which the lease expires unless the viewer acts."""
        return max(0.0, lease.acted + self.sessions.settings.idle_seconds - time.monotonic())

    def mark_seen(self, lease: Lease) -> None:
        """Note that the viewer is still there, though its user may be idle."""
        lease.seen = time.monotonic()

    def close_image(self, lease: Lease) -> None:
        """Close the image of a lease, if it has one, and forget its masks."""
        super().close_image(lease)
        lease.mask = None
        lease.undo.clear()

    def release_idle(self) -> None:
        """End the leases of viewers that are idle or gone, unless a request of theirs is in progress."""
        now, settings = time.monotonic(), self.sessions.settings
        for lease in self.unused():
            seen = max(lease.acted, lease.seen)
            if now - lease.acted > settings.idle_seconds or now - seen > settings.liveness_seconds:
                self.end(lease)

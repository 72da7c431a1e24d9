"""Leases: the state that the server keeps for each connected viewer."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.server.session import InteractiveSession
from sam2_3dmed_jax.server.sessions import BusyError, Sessions, UnknownSessionError

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
        bits = np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=int(np.prod(shape)))
        return bits.astype(bool).reshape(shape), steps

    def clear(self) -> None:
        """Forget all."""
        self._masks.clear()


@dataclass(eq=False)
class Lease:
    """A viewer's image and what the viewer knows of its mask. Used on the event loop only.

    Attributes:
        token: the secret that identifies the viewer.
        session_id: of the image; None before the first.
        shape: of the image, as sent.
        dtype: of the viewer's buffer.
        mask: bool, what the buffer of the viewer contains; None before the first buffer.
        resend: a reply was lost, so the next one contains the whole mask.
        undo: masks before each interaction.
        requests: in progress, without heartbeats.
        acted: time of the last request.
        seen: time of the last request or heartbeat.
        lock: of the requests, which are done one after the other.
    """

    token: str
    session_id: str | None = None
    shape: tuple[int, int, int] | None = None
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.uint8))
    mask: np.ndarray | None = None
    resend: bool = False
    undo: UndoStack = field(default_factory=UndoStack)
    requests: int = 0
    acted: float = field(default_factory=time.monotonic)
    seen: float = field(default_factory=time.monotonic)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def buffer(self) -> np.ndarray:
        """Return the mask.

        Raises:
            UserError: the viewer has sent no image or no target buffer.
        """
        if self.mask is None:
            raise UserError("the viewer has sent no target buffer yet; send an image and a target buffer first")
        return self.mask


class Leases:
    """The leases of a server, as many as sessions are allowed. Used on the event loop only."""

    def __init__(self, sessions: Sessions):
        """Start without leases."""
        self.sessions = sessions
        self._leases: dict[str, Lease] = {}

    def claim(self) -> Lease:
        """Return a new lease.

        Raises:
            BusyError: there are as many as allowed.
        """
        self.release_idle()
        if len(self._leases) >= self.sessions.settings.max_sessions:
            raise BusyError(f"{len(self._leases)} viewers are connected, the most this server allows")
        lease = Lease(secrets.token_urlsafe(32))
        self._leases[lease.token] = lease
        return lease

    def get(self, token: str | None) -> Lease:
        """Return a lease.

        Raises:
            UnknownSessionError: it does not exist, or not any more.
        """
        lease = self._leases.get(token or "")
        if lease is None:
            raise UnknownSessionError("the lease is unknown or has expired; connect again")
        return lease

    @contextlib.asynccontextmanager
    async def acting(self, token: str | None) -> AsyncIterator[Lease]:
        """Yield a lease for one request: no other request of the viewer runs, and the lease does not expire."""
        lease = self.get(token)
        lease.requests += 1
        try:
            async with lease.lock:
                self.get(token)  # it may have been released meanwhile
                lease.acted = lease.seen = time.monotonic()
                yield lease
        finally:
            lease.requests -= 1
            lease.acted = lease.seen = time.monotonic()

    def session(self, lease: Lease) -> InteractiveSession:
        """Return the session of a lease's image.

        Raises:
            UserError: it has no image.
            UnknownSessionError: the image was closed since it was idle.
        """
        if lease.session_id is None:
            raise UserError("the viewer has sent no image yet; send one first")
        return self.sessions.get(lease.session_id)

    def remaining_seconds(self, lease: Lease) -> float:
        """Return the time after which the lease expires unless the viewer acts."""
        return max(0.0, lease.acted + self.sessions.settings.idle_seconds - time.monotonic())

    def mark_seen(self, lease: Lease) -> None:
        """Note that the viewer is still there, though its user may be idle."""
        lease.seen = time.monotonic()

    def forget_image(self, lease: Lease) -> None:
        """Close the image of a lease, if it has one, before another."""
        if lease.session_id is not None:
            self.sessions.close(lease.session_id)
        lease.session_id = lease.shape = lease.mask = None
        lease.undo.clear()

    def release(self, lease: Lease) -> None:
        """End a lease and close its image."""
        self._leases.pop(lease.token, None)
        if lease.session_id is not None:
            self.sessions.close(lease.session_id)

    def release_idle(self) -> None:
        """End the leases of viewers that are idle or gone, unless a request of theirs is in progress."""
        now, settings = time.monotonic(), self.sessions.settings
        for lease in list(self._leases.values()):
            is_idle = now - lease.acted > settings.idle_seconds or now - lease.seen > settings.liveness_seconds
            if is_idle and not lease.requests:
                self.release(lease)

"""Connected viewers: each has a secret token, an image, and requests that are done one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.server.session import InteractiveSession
from sam2_3dmed_jax.server.sessions import Sessions, UnknownSessionError


@dataclass(eq=False)
class Viewer:
    """A viewer and its image. Used on the event loop only.

    Attributes:
        token: the secret that identifies it.
        session_id: of the image; None before the first.
        requests: in progress.
        acted: time of the last request.
        lock: of the requests.
    """

    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    session_id: str | None = None
    requests: int = 0
    acted: float = field(default_factory=time.monotonic)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


V = TypeVar("V", bound=Viewer)


class Viewers(Generic[V]):
    """The viewers that use one protocol. Used on the event loop only."""

    def __init__(self, sessions: Sessions, ended: str):
        """Start without viewers.

        Args:
            sessions: of the server.
            ended: message for a token that is not known, or not any more.
        """
        self.sessions = sessions
        self._ended = ended
        self._viewers: dict[str, V] = {}

    def __len__(self) -> int:
        """Return the number of viewers."""
        return len(self._viewers)

    def add(self, viewer: V) -> V:
        """Add a viewer, and return it."""
        self._viewers[viewer.token] = viewer
        return viewer

    def get(self, token: str | None) -> V:
        """Return a viewer.

        Raises:
            UnknownSessionError: it does not exist, or not any more.
        """
        viewer = self._viewers.get(token or "")
        if viewer is None:
            raise UnknownSessionError(self._ended)
        return viewer

    @contextlib.asynccontextmanager
    async def acting(self, token: str | None) -> AsyncIterator[V]:
        """Yield a viewer for one request: no other request of it runs, and it is not among `unused`.

        Raises:
            UnknownSessionError: it does not exist, or not any more.
        """
        viewer = self.get(token)
        viewer.requests += 1
        try:
            async with viewer.lock:
                self.get(token)  # it may have ended meanwhile
                viewer.acted = time.monotonic()
                yield viewer
        finally:
            viewer.requests -= 1
            viewer.acted = time.monotonic()

    def unused(self) -> list[V]:
        """Return the viewers without a request in progress, the one that has not acted for the longest time first."""
        return sorted((viewer for viewer in self._viewers.values() if not viewer.requests), key=lambda it: it.acted)

    def session(self, viewer: V) -> InteractiveSession:
        """Return the session of a viewer's image.

        Raises:
            UserError: it has no image.
            UnknownSessionError: the image was closed since it was idle.
        """
        if viewer.session_id is None:
            raise UserError("the viewer has sent no image yet; open the image again")
        return self.sessions.get(viewer.session_id)

    def close_image(self, viewer: V) -> None:
        """Close the image of a viewer, if it has one."""
        if viewer.session_id is not None:
            self.sessions.close(viewer.session_id)
            viewer.session_id = None

    def end(self, viewer: V) -> None:
        """Forget a viewer and close its image."""
        self._viewers.pop(viewer.token, None)
        self.close_image(viewer)

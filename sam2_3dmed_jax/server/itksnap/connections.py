"""Connections: what the server keeps for each ITK-SNAP."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.server.session import InteractiveSession
from sam2_3dmed_jax.server.sessions import Sessions, UnknownSessionError

# ITK-SNAP ends no connection when it is closed, and sends nothing that shows which ones are alive. A connection without
# an image is a few hundred bytes; its image is closed with the other idle ones (`Sessions.close_idle`).
MAX_CONNECTIONS = 256


@dataclass(eq=False)
class Connection:
    """An ITK-SNAP and its image. Used on the event loop only.

    Attributes:
        token: the secret that identifies it, which the protocol calls session id.
        session_id: of the image; None before the first.
        requests: in progress.
        lock: of the requests, which are done one after the other.
    """

    token: str
    session_id: str | None = None
    requests: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Connections:
    """The connections of a server. Used on the event loop only."""

    def __init__(self, sessions: Sessions):
        """Start without connections."""
        self._sessions = sessions
        self._connections: dict[str, Connection] = {}  # the one that was used last is at the end

    def begin(self) -> Connection:
        """Return a new connection; one that has not been used for the longest time ends if there are too many."""
        unused = [connection for connection in self._connections.values() if not connection.requests]
        for connection in unused[: max(0, len(self._connections) - MAX_CONNECTIONS + 1)]:
            self.end(connection.token)
        connection = Connection(secrets.token_urlsafe(16))
        self._connections[connection.token] = connection
        return connection

    def end(self, token: str) -> bool:
        """End a connection and close its image; return whether it existed."""
        connection = self._connections.pop(token, None)
        if connection is not None:
            self.close_image(connection)
        return connection is not None

    def close_image(self, connection: Connection) -> None:
        """Close the image of a connection, if it has one, before another."""
        if connection.session_id is not None:
            self._sessions.close(connection.session_id)
            connection.session_id = None

    @contextlib.asynccontextmanager
    async def acting(self, token: str) -> AsyncIterator[Connection]:
        """Yield a connection for one request: no other request of it runs, and it does not end to make room.

        Raises:
            UnknownSessionError: it does not exist, or not any more.
        """
        connection = self.existing(token)
        connection.requests += 1
        try:
            async with connection.lock:
                self.existing(token)  # it may have ended meanwhile
                self._connections[token] = self._connections.pop(token)  # to the end
                yield connection
        finally:
            connection.requests -= 1

    def session(self, connection: Connection) -> InteractiveSession:
        """Return the session of a connection's image.

        Raises:
            UserError: it has no image.
            UnknownSessionError: the image was closed since it was idle.
        """
        if connection.session_id is None:
            raise UserError("ITK-SNAP has sent no image yet; open the image again")
        return self._sessions.get(connection.session_id)

    def existing(self, token: str) -> Connection:
        """Return a connection.

        Raises:
            UnknownSessionError: it does not exist, or not any more.
        """
        connection = self._connections.get(token)
        if connection is None:
            raise UnknownSessionError("the connection has ended; choose the server and open the image again")
        return connection

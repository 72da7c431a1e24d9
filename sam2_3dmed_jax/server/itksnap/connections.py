"""Connections: what the server keeps for each ITK-SNAP."""

from __future__ import annotations

from sam2_3dmed_jax.server.sessions import Sessions
from sam2_3dmed_jax.server.viewers import Viewer, Viewers

# ITK-SNAP ends no connection when it is closed, and sends nothing that shows which ones are alive. A connection without
# an image is a few hundred bytes; its image is closed with the other idle ones (`Sessions.close_idle`).
MAX_CONNECTIONS = 256


class Connections(Viewers[Viewer]):
    """The connections of a server, whose tokens the protocol calls session ids."""

    def __init__(self, sessions: Sessions):
        """Start without connections."""
        super().__init__(sessions, "the connection has ended; choose the server and open the image again")

    def begin(self) -> Viewer:
        """Return a new connection; one that has not been used for the longest time ends if there are too many."""
        for viewer in self.unused()[: max(0, len(self) - MAX_CONNECTIONS + 1)]:
            self.end(viewer)
        return self.add(Viewer())

"""Conversation with the front end of the widget: its messages change the session, and events of the session follow.

The messages are as on the page of the server (`server/page/messages.py`), with requests for slices of the image. The
kernel of a notebook may deliver them in several threads.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from sam2_3dmed_jax.errors import UserError, message_line
from sam2_3dmed_jax.notebook.slice_pictures import parse_picture_request, slice_picture
from sam2_3dmed_jax.pictures.planes import PLANES
from sam2_3dmed_jax.server.events import Closed, Event
from sam2_3dmed_jax.server.page.display_grid import DisplayGrid
from sam2_3dmed_jax.server.page.image_description import volume_description
from sam2_3dmed_jax.server.page.messages import Look, Open, Ready, parse_message
from sam2_3dmed_jax.server.page.session_messages import EventMessages, change_of
from sam2_3dmed_jax.server.session import INTERNAL_ERROR, InteractiveSession

Send = Callable[[dict[str, Any], Sequence[bytes]], None]
CLOSED = "The widget was closed; run its cell again."

_log = logging.getLogger(__name__)


class WidgetConversation:
    """One widget and its session. Several views of the widget get the same messages."""

    def __init__(self, session: InteractiveSession, send: Send):
        """Begin before the front end is shown.

        Args:
            session: of the image.
            send: sends the fields of a message and its binary parts to the front end; called from any thread.
        """
        self._session = session
        self._send = send
        self._volume = session.scan.volume
        self._grid = DisplayGrid(self._volume.grid)
        self._image = volume_description(self._volume)
        self._messages = EventMessages(self._grid, session.scan.slice_axis)
        self._unsubscribe: Callable[[], None] = lambda: None
        self._starting = threading.Lock()

    def receive(self, content: Any) -> None:
        """Answer one message of the front end; mistakes are answered too."""
        try:
            if isinstance(content, dict) and content.get("type") == "picture":
                self._show_picture(content)
                return
            message = parse_message(json.dumps(content), self._grid.shape)
            match message:
                case Open():
                    raise UserError("message: a widget opens no other image; make another widget")
                case Ready():
                    self._start()
                case Look(z=z):
                    self._session.look_at(self._grid.slice_in_file(z))
                case _:
                    self._session.change(change_of(message, self._grid)).add_done_callback(self._report)
        except UserError as error:
            self._refuse(error)
        except Exception:
            _log.exception("a message of the widget failed")
            self._refuse(INTERNAL_ERROR)

    def _start(self) -> None:
        """Describe the image, and send the state and all masks, and from now on what changes."""
        with self._starting:
            self._unsubscribe()
            self._messages = EventMessages(self._grid, self._session.scan.slice_axis)
            planes = [{"name": plane.name, "letters": plane.letters} for plane in PLANES]
            self._send({"type": "opened", "image": self._image, "planes": planes}, ())
            self._unsubscribe = self._session.subscribe(self._show_event)

    def _show_picture(self, content: dict[str, Any]) -> None:
        request = parse_picture_request(content, self._volume, len(self._image["windows"]))
        if PLANES[request.plane].axis == 0:
            self._session.look_at(self._grid.slice_in_file(request.index))
        window = self._image["windows"][request.window]
        pixels = slice_picture(self._volume, request, (window["level"], window["width"]))
        self._send(content, (pixels,))  # with the request, so that the front end knows the slice

    def _show_event(self, event: Event) -> None:
        """Send an event of the session; called from its worker."""
        if isinstance(event, Closed):
            self._send({"type": "gone", "message": CLOSED}, ())
            return
        message = self._messages.about(event)
        if isinstance(message, bytes):
            self._send({"type": "slice"}, (message,))
        elif message is not None:
            self._send(message, ())

    def _report(self, change: Future[Any]) -> None:
        """Show why a change was refused."""
        error = change.exception()
        if error is not None:
            self._refuse(error if isinstance(error, UserError) else INTERNAL_ERROR)

    def _refuse(self, reason: object) -> None:
        self._send({"type": "error", "message": message_line(reason)}, ())

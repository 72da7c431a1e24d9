"""Conversation with one page: its messages become changes of the session, and the session's events its answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from starlette.websockets import WebSocketDisconnect

from sam2_3dmed_jax.errors import UserError, message_line
from sam2_3dmed_jax.server.events import EventStream
from sam2_3dmed_jax.server.page.display_grid import DisplayGrid
from sam2_3dmed_jax.server.page.image_description import image_description
from sam2_3dmed_jax.server.page.messages import Look, Open, Ready, parse_message
from sam2_3dmed_jax.server.page.session_messages import EventMessages, change_of
from sam2_3dmed_jax.server.page.uploads import Uploads
from sam2_3dmed_jax.server.session import INTERNAL_ERROR, InteractiveSession
from sam2_3dmed_jax.server.sessions import BusyError, Sessions, UnknownSessionError

PAGE_HAS_LEFT = (WebSocketDisconnect, RuntimeError, OSError)  # what sending raises then


class Conversation:
    """One page and the session that it shows. It holds no masks and no prompts: several pages may show one session."""

    def __init__(
        self,
        sessions: Sessions,
        uploads: Uploads,
        send_text: Callable[[str], Awaitable[None]],
        send_bytes: Callable[[bytes], Awaitable[None]],
    ):
        """Begin without an image.

        Args:
            sessions: of the server.
            uploads: of the server.
            send_text: sends JSON to the page.
            send_bytes: sends a slice of a mask to the page.
        """
        self._sessions = sessions
        self._uploads = uploads
        self._send_text = send_text
        self._send_bytes = send_bytes
        self._session: InteractiveSession | None = None
        self._grid: DisplayGrid | None = None
        self._use = contextlib.ExitStack()  # keeps the session in use
        # Reports on changes; not cancelled when the page leaves, since this would cancel changes that wait.
        self._reports: set[asyncio.Task[None]] = set()
        self._events: asyncio.Task[None] | None = None

    async def receive(self, text: str | None) -> None:
        """Answer one message of the page; mistakes are answered too."""
        try:
            if text is None:
                raise UserError("message: it is binary; send JSON")
            message = parse_message(text, self._grid.shape if self._grid else None)
            match message:
                case Open():
                    await self._open(message)
                case Ready():
                    await self._show_events()
                case Look(z=z):
                    self._open_session.look_at(self._display.slice_in_file(z))
                case _:
                    change = change_of(message, self._display)
                    report = asyncio.create_task(self._report(self._open_session.change(change)))
                    self._reports.add(report)
                    report.add_done_callback(self._reports.discard)
        except (UserError, BusyError, UnknownSessionError) as error:
            await self._send({"type": "error", "message": message_line(error)})

    async def end(self) -> None:
        """Stop the events, and let go of the session."""
        await self._stop_events()
        self._use.close()

    @property
    def _open_session(self) -> InteractiveSession:
        assert self._session is not None  # `parse_message` refuses messages before an image is open
        return self._session

    @property
    def _display(self) -> DisplayGrid:
        assert self._grid is not None
        return self._grid

    async def _open(self, message: Open) -> None:
        """Open an image, and describe it; a mistake is reported with the list of images."""
        try:
            if message.upload:
                name, path = "uploaded image", self._uploads.path_of(message.upload)
            else:
                name, path = message.image, self._sessions.files.path_of(message.image)
            session_id = await asyncio.to_thread(self._sessions.open, path)
            session = self._sessions.get(session_id)
        except (UserError, BusyError, UnknownSessionError) as error:
            await self._send({"type": "error", "about": "open", "message": message_line(error)})
            return
        await self._stop_events()
        self._use.close()
        self._use.enter_context(session.in_use())
        self._session, self._grid = session, DisplayGrid(session.scan.volume.grid)
        description = await asyncio.to_thread(image_description, name, session_id, session.scan.volume)
        source = {"upload": message.upload} if message.upload else {"image": message.image}
        await self._send({"type": "opened", "session": session_id, "source": source, "image": description})

    async def _show_events(self) -> None:
        """Send the state and all masks, and from now on what changes."""
        await self._stop_events()
        self._events = asyncio.create_task(self._pump(self._open_session, self._display))

    async def _stop_events(self) -> None:
        if self._events is not None:
            self._events.cancel()
            await asyncio.gather(self._events, return_exceptions=True)
            self._events = None

    async def _pump(self, session: InteractiveSession, grid: DisplayGrid) -> None:
        messages = EventMessages(grid, session.scan.slice_axis)
        stream = EventStream()
        unsubscribe = session.subscribe(stream.put)
        try:
            while True:
                # In the order of their arrival: a state is complete after its masks.
                for event in await stream.take():
                    message = messages.about(event)
                    if isinstance(message, bytes):
                        await self._send_bytes(message)
                    elif message is not None:
                        await self._send(message)
        except PAGE_HAS_LEFT:
            return
        finally:
            unsubscribe()

    async def _report(self, change: Future[Any]) -> None:
        """Tell the page if a change is refused."""
        try:
            await asyncio.wrap_future(change)
            return
        except UserError as error:
            refusal = message_line(error)
        except Exception:  # the session has logged it
            refusal = INTERNAL_ERROR
        with contextlib.suppress(*PAGE_HAS_LEFT):
            await self._send({"type": "error", "message": refusal})

    async def _send(self, message: dict[str, Any]) -> None:
        await self._send_text(json.dumps(message, allow_nan=False))

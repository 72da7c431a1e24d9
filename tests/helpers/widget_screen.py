"""The front end of the widget without a browser: it collects what the kernel sends, and waits for it."""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class WidgetScreen:
    """The state, prompts, masks and messages that a view of the widget would show."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.parts: dict[tuple[int, int], np.ndarray] = {}  # object and z to a slice, bool [y, x]
        self.pictures: list[bytes] = []
        self._changed = threading.Condition()

    def send(self, content: dict[str, Any], buffers: Sequence[bytes] | None = None) -> None:
        """Receive a message of the kernel; called from several threads."""
        with self._changed:
            self.messages.append(content)
            if content["type"] == "slice":
                self._add_slice(*buffers)
            if content["type"] == "picture":
                self.pictures += buffers
            self._changed.notify_all()

    def last(self, kind: str) -> dict[str, Any]:
        """Return the latest message of a kind; an empty one before the first."""
        return next((message for message in reversed(self.messages) if message["type"] == kind), {})

    def wait(self, condition: Callable[[], Any]) -> None:
        """Wait until a condition is true after a message."""
        with self._changed:
            assert self._changed.wait_for(condition, 120), self.messages[-5:]

    def wait_for_masks(self, prompts: int) -> None:
        """Wait until the masks of a number of points and boxes are complete."""
        self.wait(lambda: len(self.prompts) == prompts and self.last("state").get("complete"))

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """The latest points and boxes."""
        return next((message["prompts"] for message in reversed(self.messages) if "prompts" in message), [])

    def mask(self, number: int) -> np.ndarray:
        """Return the mask of an object on the grid of the page, bool `[x, y, z]`."""
        shape = self.last("opened")["image"]["shape"]
        mask = np.zeros(shape, bool)
        for (object_id, z), part in self.parts.items():
            if object_id == number and number in {it["id"] for it in self.last("state")["objects"] if it["prompted"]}:
                mask[:, :, z] = part.T
        return mask

    def picture(self, rows: int, columns: int) -> np.ndarray:
        """Return the latest slice of the image, uint8 `[rows, columns]`."""
        return np.frombuffer(zlib.decompress(self.pictures[-1]), np.uint8).reshape(rows, columns)

    def _add_slice(self, message: bytes) -> None:
        _, number, _, z, x, y, width, height = struct.unpack_from("<BxHIHHHHH", message)
        nx, ny, _ = self.last("opened")["image"]["shape"]
        bits = np.unpackbits(np.frombuffer(message, np.uint8, offset=18), count=width * height)
        part = np.zeros((ny, nx), bool)
        part[y : y + height, x : x + width] = bits.reshape(height, width)
        self.parts[number, z] = part

"""Bodies of requests, read within limits of size and time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

SILENCE_SECONDS = 60.0  # between two parts of a body, after which the client is given up


async def stream_body(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the parts of a body.

    Raises:
        HTTPException: 413, it has more than `limit` bytes, before more of them are read; 408, the client is silent.
    """
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > limit:
        raise HTTPException(413, f"the request has {length[:20]} bytes, and this server allows {limit}")
    received = 0
    parts = request.stream()
    while True:
        try:
            part = await asyncio.wait_for(anext(parts), SILENCE_SECONDS)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise HTTPException(408, "the rest of the request did not arrive") from None
        received += len(part)
        if received > limit:
            raise HTTPException(413, f"the request has more than {limit} bytes, which this server allows")
        yield part


async def read_body(request: Request, limit: int) -> bytes:
    """Return a body.

    Raises:
        HTTPException: as `stream_body`.
        ClientDisconnect: the client closed the connection.
    """
    return b"".join([part async for part in stream_body(request, limit)])


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """Return a body that is a JSON object; an empty body is an empty object.

    Raises:
        HTTPException: 400, it is another value; or as `stream_body`.
        ClientDisconnect: the client closed the connection.
    """
    return parse_json_object(await read_body(request, limit))


def parse_json_object(text: bytes | str, name: str = "the body") -> dict[str, Any]:
    """Parse a JSON object; an empty text is an empty object.

    Args:
        text: JSON.
        name: of the text, in the error.

    Raises:
        HTTPException: 400, it is another value.
    """
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise HTTPException(400, f"{name} is not a JSON object")
    return value

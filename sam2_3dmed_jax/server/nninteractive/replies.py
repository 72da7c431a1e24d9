"""Replies with masks, which begin before the mask is known if the viewer would give up waiting."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Awaitable
from dataclasses import dataclass

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from sam2_3dmed_jax.metrics.mask_box import extent
from sam2_3dmed_jax.server.nninteractive import nnia

Box = list[list[int]]  # [[first, after the last], ...] per axis

# Viewers give up after 60 s without a byte. After `BEGIN_SECONDS` the reply begins, with the whole image as its box.
BEGIN_SECONDS = 20.0
ALIVE_SECONDS = 10.0
EMPTY_BLOCK = b"\0\0\0\xff\xff"  # of deflate, stored and empty: changes nothing of the content


@dataclass(frozen=True, eq=False)
class MaskChange:
    """What is new in the mask.

    Attributes:
        mask: bool, the whole mask.
        box: where it has changed; None: nowhere.
    """

    mask: np.ndarray
    box: Box | None


def change_between(before: np.ndarray, after: np.ndarray, whole: bool = False) -> MaskChange:
    """Return the smallest box around the voxels that differ, or the whole image."""
    if whole:
        return MaskChange(after, whole_box(after.shape))
    found = extent(before != after)
    return MaskChange(after, None if found is None else [[first, last + 1] for first, last in zip(*found, strict=True)])


def whole_box(shape: tuple[int, ...]) -> Box:
    """Return the box of a whole image."""
    return [[0, extent] for extent in shape]


def meta_header(ran: bool, box: Box | None, dtype: np.dtype, shape: tuple[int, ...]) -> str:
    """Return the `X-Meta` header of a reply."""
    return json.dumps({"ran_prediction": ran, "bbox": box, "dtype": dtype.name, "shape": list(shape)})


def packed_box(mask: np.ndarray, box: Box, dtype: np.dtype) -> bytes:
    """Return the mask inside of a box, 0 and 1 in a dtype, as NNIA."""
    return nnia.pack(mask[tuple(slice(low, high) for low, high in box)].astype(dtype))


class MaskReply:
    """ASGI response with the change of a mask."""

    def __init__(self, request: Request, work: Awaitable[MaskChange], shape: tuple[int, ...], dtype: np.dtype):
        """Begin the work.

        Args:
            request: the request; if its client reads gzip, as all viewers do, the reply may begin early.
            work: returns the change; it runs to its end even if the client is gone.
            shape: of the image.
            dtype: of the viewer's buffer.
        """
        self._request, self._shape, self._dtype = request, shape, dtype
        self._work = asyncio.ensure_future(work)
        self.is_lost = True  # until the mask is sent to a client that is still there

    async def wait_for_start(self) -> None:
        """Wait until the mask is known or the reply must begin.

        Raises:
            Exception: of the work, so that it becomes an error response.
        """
        reads_gzip = "gzip" in self._request.headers.get("accept-encoding", "")
        await asyncio.wait({self._work}, timeout=BEGIN_SECONDS if reads_gzip else None)
        if self._work.done():
            self._work.result()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. An error after its start closes the connection, which viewers report."""
        if self._work.done():
            await self._send_at_once(send, self._work.result())
        else:
            await self._send_slowly(send)

    async def _send_at_once(self, send: Send, change: MaskChange) -> None:
        self.is_lost = await self._request.is_disconnected()
        body = b"" if change.box is None else await run_in_threadpool(packed_box, change.mask, change.box, self._dtype)
        await _start(send, meta_header(True, change.box, self._dtype, self._shape), ("content-length", str(len(body))))
        await send({"type": "http.response.body", "body": body})

    async def _send_slowly(self, send: Send) -> None:
        box = whole_box(self._shape)
        await _start(send, meta_header(True, box, self._dtype, self._shape), ("content-encoding", "gzip"))
        gzip = zlib.compressobj(0, wbits=31)
        start = gzip.compress(b"") + gzip.flush(zlib.Z_SYNC_FLUSH)  # ends at a byte, so that empty blocks may follow
        await send({"type": "http.response.body", "body": start, "more_body": True})
        while not (await asyncio.wait({self._work}, timeout=ALIVE_SECONDS))[0]:
            await send({"type": "http.response.body", "body": EMPTY_BLOCK, "more_body": True})
        self.is_lost = await self._request.is_disconnected()
        body = await run_in_threadpool(packed_box, self._work.result().mask, box, self._dtype)
        await send({"type": "http.response.body", "body": gzip.compress(body) + gzip.flush()})


async def _start(send: Send, meta: str, *more: tuple[str, str]) -> None:
    headers = (("content-type", "application/octet-stream"), ("x-meta", meta), *more)
    encoded = [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": 200, "headers": encoded})

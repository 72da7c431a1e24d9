"""Routes of nnInteractive's protocol.

A viewer claims a lease, sends an image and the shape of its mask, and then interactions. Each reply contains the box in
which the mask has changed, and the mask in it. Requests of one lease are done one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.scan.scan import Scan
from sam2_3dmed_jax.server.bodies import parse_json_object, read_body, read_json
from sam2_3dmed_jax.server.nninteractive import interactions, nnia
from sam2_3dmed_jax.server.nninteractive.axes import guessed_affine, parse_spacing
from sam2_3dmed_jax.server.nninteractive.leases import Lease, Leases
from sam2_3dmed_jax.server.nninteractive.replies import MaskChange, MaskReply, change_between, meta_header
from sam2_3dmed_jax.server.sessions import Sessions, UnknownSessionError, check_voxels
from sam2_3dmed_jax.server.viewer_prompts import SteppingChange, mask_of
from sam2_3dmed_jax.volume.zoom import AUTO, OFF

PROTOCOL_VERSION = "2.6.0"  # of the clients that this server is tested with
LEASE_HEADER = "x-lease-token"
META_HEADER = "x-meta"
UPLOADS = 2  # bodies with voxels that are received and unpacked at the same time, so that memory is bounded

CAPABILITIES = {
    "supported_interactions": {"points": True, "bbox2d": True, "bbox3d": True, "scribble": True, "lasso": True},
    # The channels of nnInteractive's network, which viewers only look up.
    "channel_mapping": {
        "prev_seg": 0,
        "bbox": [1, 2],
        "bbox2d": [1, 2],
        "bbox3d": [1, 2],
        "lasso": [1, 2],
        "points": [3, 4],
        "scribble": [5, 6],
    },
    "num_interaction_channels": 7,
    "supports_initial_label": True,
    "supports_zero_shot_label_refinement": True,
    "preferred_scribble_thickness": [1, 1, 1],
    "interaction_decay": None,
    "patch_size": None,
    "inference_session_version": PROTOCOL_VERSION,
    "supports_undo": True,
}

Handler = Callable[[Request, Lease], Awaitable[ASGIApp]]


def nninteractive_routes(sessions: Sessions, leases: Leases) -> list[BaseRoute]:
    """Return the routes of the protocol."""
    handlers = _Handlers(sessions, leases)

    def leased(path: str, handler: Handler) -> Route:
        return Route(path, _LeasedEndpoint(leases, handler), methods=["POST"])

    return [
        Route("/healthz", handlers.healthz, methods=["GET"]),
        Route("/capabilities", handlers.capabilities, methods=["GET"]),
        Route("/claim", handlers.claim, methods=["POST"]),
        Route("/release", handlers.release, methods=["POST"]),
        Route("/heartbeat", handlers.heartbeat, methods=["POST"]),
        Route("/lease_status", handlers.lease_status, methods=["GET"]),
        leased("/set_image", handlers.set_image),
        leased("/set_target_buffer", handlers.set_target_buffer),
        leased("/set_do_autozoom", handlers.set_do_autozoom),
        leased("/reset_interactions", handlers.reset_interactions),
        leased("/add_point_interaction", partial(handlers.add_from_json, interactions.point)),
        leased("/add_bbox_interaction", partial(handlers.add_from_json, interactions.box)),
        leased("/add_scribble_interaction", partial(handlers.add_drawing, interactions.scribble)),
        leased("/add_lasso_interaction", partial(handlers.add_drawing, interactions.lasso)),
        leased("/add_initial_seg_interaction", handlers.add_initial_mask),
        leased("/predict", handlers.predict),
        leased("/undo", handlers.undo),
    ]


class _LeasedEndpoint:
    """ASGI endpoint that holds the lease of a request until its response has been sent."""

    def __init__(self, leases: Leases, handler: Handler):
        self._leases, self._handler = leases, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        async with self._leases.acting(request.headers.get(LEASE_HEADER)) as lease:
            response = await self._handler(request, lease)
            try:
                await response(scope, receive, send)
            finally:
                if isinstance(response, MaskReply) and response.is_lost:
                    lease.resend = True


class _Handlers:
    """The requests of the protocol."""

    def __init__(self, sessions: Sessions, leases: Leases):
        self._sessions, self._leases, self._settings = sessions, leases, sessions.settings
        self._uploads = asyncio.Semaphore(UPLOADS)

    # Leases

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"ok": True})

    async def capabilities(self, request: Request) -> Response:
        zooms = self._settings.zoom != OFF
        return JSONResponse({**CAPABILITIES, "do_autozoom": zooms, "license": self._sessions.licence})

    async def claim(self, request: Request) -> Response:
        lease = self._leases.claim()
        return JSONResponse(
            {
                "lease_token": lease.token,
                "idle_timeout_seconds": self._settings.idle_seconds,
                "liveness_timeout_seconds": self._settings.liveness_seconds,
                "max_sessions": self._settings.max_sessions,
            }
        )

    async def release(self, request: Request) -> Response:
        with contextlib.suppress(UnknownSessionError):  # viewers release at exit, when the lease may have expired
            self._leases.end(self._leases.get(request.headers.get(LEASE_HEADER)))
        return JSONResponse({"released": True})

    async def heartbeat(self, request: Request) -> Response:
        lease = self._leases.get(request.headers.get(LEASE_HEADER))
        self._leases.mark_seen(lease)
        return JSONResponse({"remaining_seconds": self._leases.remaining_seconds(lease)})

    async def lease_status(self, request: Request) -> Response:
        lease = self._leases.get(request.headers.get(LEASE_HEADER))
        remaining = self._leases.remaining_seconds(lease)
        return JSONResponse({"remaining_seconds": remaining, "idle_timeout_seconds": self._settings.idle_seconds})

    # The image

    async def set_image(self, request: Request, lease: Lease) -> Response:
        spacing = parse_spacing(self._meta(request).get("image_properties"))
        array = await self._array(request, nnia.IMAGE_DTYPES, 4)
        channels, *shape = array.shape
        if channels != 1:
            raise UserError(f"the image has {channels} channels, expected 1")
        check_voxels(tuple(shape), self._settings.max_voxels)
        self._leases.close_image(lease)
        affine = guessed_affine(shape, spacing)
        lease.session_id = await run_in_threadpool(self._sessions.open_array, array[0], affine, lease.zoom)
        return JSONResponse({"original_image_shape": list(array.shape)})

    async def set_target_buffer(self, request: Request, lease: Lease) -> Response:
        body = await read_json(request, self._settings.max_json_bytes)
        shape = self._leases.session(lease).scan.shape
        if body.get("shape") != list(shape):
            raise UserError(f"shape: the target buffer does not have the shape {list(shape)} of the image")
        name = body.get("dtype")
        if not isinstance(name, str) or name not in nnia.MASK_DTYPES or np.dtype(name).kind == "f":
            raise UserError("dtype: expected bool or a type of integers of up to 32 bits")
        lease.dtype, lease.mask = np.dtype(name), np.zeros(shape, bool)
        lease.resend = True  # the buffer may contain something else
        return JSONResponse({})

    async def set_do_autozoom(self, request: Request, lease: Lease) -> Response:
        is_on = interactions.flag(await read_json(request, self._settings.max_json_bytes), "do_autozoom")
        served = self._settings.zoom
        zoom = (AUTO if served == OFF else served) if is_on else OFF
        lease.zoom = zoom
        if lease.session_id is not None:
            session = self._leases.session(lease)
            with session.in_use():
                await asyncio.wrap_future(session.change(lambda scan: scan.set_zoom(zoom), propagate=False))
        return JSONResponse({})

    async def reset_interactions(self, request: Request, lease: Lease) -> Response:
        if lease.session_id is not None:
            session = self._leases.session(lease)
            with session.in_use():
                await asyncio.wrap_future(session.change(Scan.reset, propagate=False))
        lease.undo.clear()
        if lease.mask is not None:  # the viewer empties its buffer too
            lease.mask, lease.resend = np.zeros(lease.mask.shape, bool), False
        return JSONResponse({})

    # Interactions

    async def add_from_json(
        self, parse: Callable[[dict[str, Any]], SteppingChange], request: Request, lease: Lease
    ) -> ASGIApp:
        body = await read_json(request, self._settings.max_json_bytes)
        return await self._interact(request, lease, parse(body), interactions.flag(body, "run_prediction", True))

    async def add_drawing(
        self,
        parse: Callable[[np.ndarray, dict[str, Any]], SteppingChange],
        request: Request,
        lease: Lease,
    ) -> ASGIApp:
        meta = self._meta(request)
        lease.buffer()  # before the upload
        drawing = await self._array(request, nnia.MASK_DTYPES, 3)
        return await self._interact(
            request, lease, parse(drawing, meta), interactions.flag(meta, "run_prediction", True)
        )

    async def add_initial_mask(self, request: Request, lease: Lease) -> ASGIApp:
        runs = interactions.flag(self._meta(request), "run_prediction", False)
        before = lease.buffer()
        mask = await self._array(request, nnia.MASK_DTYPES, 3) != 0
        if mask.shape != before.shape:
            raise UserError(f"the mask has shape {mask.shape}, expected {before.shape} as the image")

        def shown() -> None:  # the viewer has put it into its buffer
            lease.mask, lease.resend = mask, False

        return await self._interact(request, lease, interactions.initial_mask(mask), runs, shown)

    async def predict(self, request: Request, lease: Lease) -> ASGIApp:
        await read_json(request, self._settings.max_json_bytes)
        lease.buffer()
        session = self._leases.session(lease)
        if not session.scan.prompts:
            return _nothing_ran()
        return await self._reply(request, lease, self._predicted(lease))

    async def undo(self, request: Request, lease: Lease) -> ASGIApp:
        before = lease.buffer()
        undone = await run_in_threadpool(lease.undo.pop, before.shape)
        if undone is None:
            return _nothing_ran()
        mask, steps = undone
        session = self._leases.session(lease)

        async def taken_back() -> MaskChange:
            with session.in_use():
                await asyncio.wrap_future(
                    session.change(lambda scan: [scan.undo() for _ in range(steps)], propagate=False)
                )
            return await self._changed(lease, mask)

        return await self._reply(request, lease, taken_back())

    async def _interact(
        self,
        request: Request,
        lease: Lease,
        change: SteppingChange,
        run_prediction: bool,
        done: Callable[[], None] = lambda: None,
    ) -> ASGIApp:
        """Change the prompts, and return the reply with or without a prediction."""
        before = lease.buffer()
        session = self._leases.session(lease)
        with session.in_use():
            steps = await asyncio.wrap_future(session.change(change, propagate=run_prediction))
        await run_in_threadpool(lease.undo.push, before, steps)
        done()
        return await self._reply(request, lease, self._predicted(lease)) if run_prediction else _nothing_ran()

    async def _predicted(self, lease: Lease) -> MaskChange:
        """Return the change of the mask by the current prompts."""
        session = self._leases.session(lease)
        with session.in_use():
            return await self._changed(lease, await asyncio.wrap_future(session.read(mask_of)))

    async def _changed(self, lease: Lease, mask: np.ndarray) -> MaskChange:
        change = await run_in_threadpool(change_between, lease.buffer(), mask, lease.resend)
        lease.mask, lease.resend = mask, False
        return change

    async def _reply(self, request: Request, lease: Lease, work: Awaitable[MaskChange]) -> ASGIApp:
        reply = MaskReply(request, work, lease.buffer().shape, lease.dtype)
        await reply.wait_for_start()
        return reply

    # Parts of requests

    def _meta(self, request: Request) -> dict[str, Any]:
        return parse_json_object(request.headers.get(META_HEADER, ""), "the header X-Meta")

    async def _array(self, request: Request, dtypes: frozenset[str], axes: int) -> np.ndarray:
        async with self._uploads:
            body = await read_body(request, self._settings.max_upload_bytes)
            return await run_in_threadpool(nnia.unpack, body, self._settings.max_voxels, dtypes, axes)


def _nothing_ran() -> Response:
    header = meta_header(False, None, np.dtype(np.uint8), ())
    return Response(b"", media_type="application/octet-stream", headers={META_HEADER: header})

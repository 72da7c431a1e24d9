"""Routes of the protocol of ITK-SNAP's deep learning extensions.

ITK-SNAP asks for the models, starts a session, sends its image and then interactions. Each reply contains the whole
mask, which replaces the label that is active in ITK-SNAP. It waits for replies without a time limit. Two dialects are
in use: paths that start with `/v2` since ITK-SNAP 4.6, and paths without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.scan.scan import Scan
from sam2_3dmed_jax.server import viewer_prompts
from sam2_3dmed_jax.server.bodies import parse_json_object, read_body
from sam2_3dmed_jax.server.itksnap.connections import Connections
from sam2_3dmed_jax.server.itksnap.forms import parse_form
from sam2_3dmed_jax.server.itksnap.images import Geometry, pack_mask, parse_geometry, unpack_voxels
from sam2_3dmed_jax.server.sessions import Sessions
from sam2_3dmed_jax.server.viewers import Viewer

PROTOCOL_VERSION = "0.1.6"  # of `itksnap-dls`; ITK-SNAP refuses servers that are older than it needs
# ITK-SNAP sends outlines to the model of this name, whatever models a server has; so the one model here has the name,
# though its weights are other ones.
MODEL = "nnInteractive"
MODELS = {"models": [{"id": MODEL, "channels": [1], "dimensions": 3, "interactions": ["point", "scribble", "lasso"]}]}
UPLOADS = 2  # bodies with voxels that are received and unpacked at the same time, so that memory is bounded

Handler = Callable[[Request, Viewer], Awaitable[Response]]
Drawing = Callable[[Scan, np.ndarray, bool], int]


def itksnap_routes(sessions: Sessions) -> list[BaseRoute]:
    """Return the routes of the protocol."""
    handlers = _Handlers(sessions)

    def both(path: str, handler: Handler, method: str = "GET") -> list[BaseRoute]:
        endpoint = partial(handlers.connected, handler)
        return [Route(f"{start}{path}/{{token}}", endpoint, methods=[method]) for start in ("", "/v2")]

    return [
        Route("/status", handlers.status),
        Route("/v2/models", handlers.models),
        Route("/start_session", handlers.start_session),
        Route("/v2/start_session/{model}", handlers.start_session),
        *both("/end_session", handlers.end_session),
        *both("/upload_raw", handlers.upload_image, "POST"),
        *both("/reset_interactions", handlers.reset_interactions),
        *both("/process_point_interaction", handlers.add_point),
        *both("/process_scribble_interaction", partial(handlers.add_drawing, viewer_prompts.scribble), "POST"),
        *both("/process_lasso_interaction", partial(handlers.add_drawing, viewer_prompts.lasso), "POST"),
    ]


class _Handlers:
    """The requests of the protocol."""

    def __init__(self, sessions: Sessions):
        self._sessions, self._settings = sessions, sessions.settings
        self._connections = Connections(sessions)
        self._uploads = asyncio.Semaphore(UPLOADS)

    # Connections

    async def status(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "version": PROTOCOL_VERSION})

    async def models(self, request: Request) -> Response:
        return JSONResponse(MODELS)

    async def start_session(self, request: Request) -> Response:
        _refuse_browsers(request)
        if request.path_params.get("model", MODEL) != MODEL:
            raise HTTPException(404, f"this server has one model, {MODEL}")
        return JSONResponse({"session_id": self._connections.begin().token})

    async def connected(self, handler: Handler, request: Request) -> Response:
        """Call a handler with the connection that the path names."""
        _refuse_browsers(request)
        async with self._connections.acting(request.path_params["token"]) as connection:
            return await handler(request, connection)

    async def end_session(self, request: Request, connection: Viewer) -> Response:
        self._connections.end(connection)
        return JSONResponse({"message": "Session ended"})

    # The image

    async def upload_image(self, request: Request, connection: Viewer) -> Response:
        array, geometry = await self._voxels(request)
        self._connections.close_image(connection)
        connection.session_id = await run_in_threadpool(self._sessions.open_array, array, geometry.affine)
        return JSONResponse({"message": "the image has arrived"})

    async def reset_interactions(self, request: Request, connection: Viewer) -> Response:
        session = self._connections.session(connection)
        with session.in_use():
            await asyncio.wrap_future(session.change(Scan.reset, propagate=False))
        return JSONResponse({"status": "success"})

    # Interactions

    async def add_point(self, request: Request, connection: Viewer) -> Response:
        voxel, include = _voxel(request), _foreground(request)
        return await self._interact(connection, lambda scan: viewer_prompts.click(scan, voxel, include))

    async def add_drawing(self, add: Drawing, request: Request, connection: Viewer) -> Response:
        include = _foreground(request)
        session = self._connections.session(connection)  # before the upload
        with session.in_use():
            drawing, geometry = await self._voxels(request)
        if geometry.shape != session.scan.shape:
            raise UserError(f"the drawing has shape {geometry.shape}, expected {session.scan.shape} as the image")
        area = drawing != 0
        if not area.any():
            raise UserError("the drawing is empty")
        return await self._interact(connection, lambda scan: add(scan, area, include))

    async def _interact(self, connection: Viewer, change: Callable[[Scan], Any]) -> Response:
        """Change the prompts, and return the mask of all slices."""
        session = self._connections.session(connection)
        with session.in_use():
            await asyncio.wrap_future(session.change(change))
            mask = await asyncio.wrap_future(session.read(viewer_prompts.mask_of))
        return JSONResponse({"status": "success", "result": await run_in_threadpool(pack_mask, mask)})

    # Parts of requests

    async def _voxels(self, request: Request) -> tuple[np.ndarray, Geometry]:
        """Return the voxels of a form, `[i, j, k]`, and their geometry."""
        async with self._uploads:
            body = await read_body(request, self._settings.max_upload_bytes)
            return await run_in_threadpool(self._unpack, request.headers.get("content-type", ""), body)

    def _unpack(self, content_type: str, body: bytes) -> tuple[np.ndarray, Geometry]:
        parts = parse_form(content_type, body)
        if not parts.keys() >= {"file", "metadata"}:
            raise UserError("the form does not have the parts file and metadata")
        if len(parts["metadata"]) > self._settings.max_json_bytes:
            raise UserError("metadata: it is too long")
        geometry = parse_geometry(parse_json_object(bytes(parts["metadata"]), "metadata"), self._settings.max_voxels)
        return unpack_voxels(parts["file"], geometry.shape), geometry


def _voxel(request: Request) -> list[int]:
    """Return the voxel of a click, `point=i&point=j&point=k` or `x=i&y=j&z=k`, where 0 is the first.

    Raises:
        UserError: it is not three whole numbers.
    """
    query = request.query_params
    words = query.getlist("point") or [query.get(axis, "") for axis in "xyz"]
    if len(words) != 3 or not all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words):
        raise UserError("point: expected three whole numbers")
    return [int(word) for word in words]


def _foreground(request: Request) -> bool:
    """Return whether an interaction is inside of the object; false if the request does not contain it.

    Raises:
        UserError: it is another word than true and false.
    """
    word = request.query_params.get("foreground", "false")
    if word not in ("true", "false"):
        raise UserError("foreground: expected true or false")
    return word == "true"


def _refuse_browsers(request: Request) -> None:
    """Refuse a request that a browser sends, since a link of another site is allowed to open the page.

    ITK-SNAP changes sessions by GET, as links do.

    Raises:
        HTTPException: 403, it has a header that browsers add.
    """
    if "sec-fetch-mode" in request.headers:
        raise HTTPException(403, "this address is for ITK-SNAP; open / in a browser")

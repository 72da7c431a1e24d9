"""Application of the server: the routes of all adapters behind the same checks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from sam2_3dmed_jax.errors import LINE, UserError, message_line
from sam2_3dmed_jax.server.itksnap.routes import itksnap_routes
from sam2_3dmed_jax.server.nninteractive.leases import Leases
from sam2_3dmed_jax.server.nninteractive.routes import nninteractive_routes
from sam2_3dmed_jax.server.page.routes import page_routes
from sam2_3dmed_jax.server.security import Security
from sam2_3dmed_jax.server.session import INTERNAL_ERROR
from sam2_3dmed_jax.server.sessions import BusyError, Sessions, UnknownSessionError
from sam2_3dmed_jax.server.settings import ServeSettings

SWEEP_SECONDS = 10.0  # between two searches for idle sessions
CLOSE_SECONDS = 10.0  # for a session's worker to finish the slice that it computes

_log = logging.getLogger(__name__)


def application(settings: ServeSettings) -> Starlette:
    """Return the application.

    It is an ASGI application without a check of its own whether the key suits the address: see
    `security.check_exposure`.

    Raises:
        UserError: the model or the root folder cannot be served.
    """
    sessions = Sessions(settings)
    leases = Leases(sessions)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        sweep = asyncio.create_task(_sweep(sessions, leases))
        try:
            yield
        finally:
            sweep.cancel()
            await run_in_threadpool(sessions.close_all, CLOSE_SECONDS)

    return Starlette(
        routes=[*page_routes(sessions), *nninteractive_routes(sessions, leases), *itksnap_routes(sessions)],
        middleware=[Middleware(Security, settings=settings)],
        exception_handlers={
            UserError: _user_error,
            UnknownSessionError: _unknown_session,
            BusyError: _busy,
            HTTPException: _http_error,
            ClientDisconnect: _client_gone,
            Exception: _internal_error,
        },
        lifespan=lifespan,
    )


async def _sweep(sessions: Sessions, leases: Leases) -> None:
    """Close idle sessions and leases from time to time."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        leases.release_idle()
        await run_in_threadpool(sessions.close_idle)


async def _user_error(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": message_line(error, LINE)}, 400)


async def _unknown_session(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 410)


async def _busy(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 503)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _internal_error(request: Request, error: Exception) -> Response:
    _log.error("a request of %s failed", request.url.path, exc_info=error)
    return JSONResponse({"detail": INTERNAL_ERROR}, 500)

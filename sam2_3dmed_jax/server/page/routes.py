"""Routes of the page: its files, images, uploads, saved results, and the WebSocket of a session."""

from __future__ import annotations

import asyncio
import io
import tempfile
import zipfile
from pathlib import Path
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.scan.scan import Scan
from sam2_3dmed_jax.server.bodies import stream_body
from sam2_3dmed_jax.server.page.conversation import PAGE_HAS_LEFT, Conversation
from sam2_3dmed_jax.server.page.display_grid import DisplayGrid
from sam2_3dmed_jax.server.page.image_description import SAVE_FORMATS
from sam2_3dmed_jax.server.page.uploads import Uploads
from sam2_3dmed_jax.server.sessions import Sessions

STATIC = Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}


def page_routes(sessions: Sessions) -> list[Route | WebSocketRoute]:
    """Return the routes of the page.

    Args:
        sessions: the open sessions of the server.
    """
    page = _Page(sessions)
    return [
        Route("/", page.index),
        Route("/static/{name}", page.static),
        Route("/page/info", page.info),
        Route("/page/images", page.images),
        Route("/page/uploads", page.begin_upload, methods=["POST"]),
        Route("/page/uploads/{token}/{index:int}", page.upload_file, methods=["PUT"]),
        Route("/page/sessions/{session}/image.nii", page.image),
        Route("/page/sessions/{session}/save", page.save),
        WebSocketRoute("/page/socket", page.socket),
    ]


class _Page:
    """The endpoints of `page_routes`."""

    def __init__(self, sessions: Sessions):
        self._sessions = sessions
        settings = sessions.settings
        self._uploads = Uploads(settings.state_folder / "uploads", settings.max_upload_bytes)

    async def index(self, request: Request) -> Response:
        """Return the page."""
        return _file("index.html")

    async def static(self, request: Request) -> Response:
        """Return a file of the page."""
        return _file(request.path_params["name"])

    async def info(self, request: Request) -> Response:
        """Return what the page must know before it connects."""
        settings = self._sessions.settings
        image = settings.image.name if settings.image is not None else None
        return JSONResponse({"image": image, "uploadBytes": settings.max_upload_bytes})

    async def images(self, request: Request) -> Response:
        """Return the names of the images of the server."""
        return JSONResponse({"images": await asyncio.to_thread(self._sessions.files.names)})

    async def begin_upload(self, request: Request) -> Response:
        """Begin an upload."""
        return JSONResponse({"upload": await asyncio.to_thread(self._uploads.begin)})

    async def upload_file(self, request: Request) -> Response:
        """Store a file of an upload; its name is in a header, since addresses are written to logs."""
        token, index = request.path_params["token"], request.path_params["index"]
        chunks = stream_body(request, self._sessions.settings.max_upload_bytes)
        await self._uploads.add(token, index, unquote(request.headers.get("x-file-name", "")), chunks)
        return JSONResponse({})

    async def image(self, request: Request) -> Response:
        """Return the image of a session on the page's grid."""
        session = self._sessions.get(request.path_params["session"])
        with session.in_use():
            volume = session.scan.volume
            content = await asyncio.to_thread(DisplayGrid(volume.grid).nifti, volume)
        return Response(content, media_type="application/octet-stream")

    async def save(self, request: Request) -> Response:
        """Return the segmentation or the prompts as a file to download."""
        save_format = SAVE_FORMATS.get(request.query_params.get("format", ""))
        if save_format is None:
            raise UserError(f"format: choose one of {', '.join(SAVE_FORMATS)}")

        def write(scan: Scan) -> tuple[str, bytes]:
            with tempfile.TemporaryDirectory() as folder:
                save_format.write(scan, Path(folder) / save_format.file_name)
                return _download(Path(folder), save_format.file_name, save_format.companions)

        session = self._sessions.get(request.path_params["session"])
        with session.in_use():
            name, content = await asyncio.wrap_future(session.read(write))
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type="application/octet-stream", headers=headers)

    async def socket(self, socket: WebSocket) -> None:
        """Talk with one page until it leaves."""
        await socket.accept()
        conversation = Conversation(self._sessions, self._uploads, socket.send_text, socket.send_bytes)
        try:
            while (message := await socket.receive())["type"] != "websocket.disconnect":
                await conversation.receive(message.get("text"))
        except PAGE_HAS_LEFT:
            return
        finally:
            await conversation.end()


def _file(name: str) -> Response:
    """Return a file of the page; names are looked up in a list, so that no other file can be reached."""
    known = {path.name: path for path in STATIC.iterdir() if path.suffix in _TYPES}
    if name not in known:
        return JSONResponse({"detail": "this file does not exist"}, 404)
    path = known[name]
    return Response(path.read_bytes(), media_type=f"{_TYPES[path.suffix]}; charset=utf-8")


def _download(folder: Path, name: str, companions: bool) -> tuple[str, bytes]:
    """Return the name and content of one file, or of an archive of all files if others belong to it."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if not companions or len(files) == 1:
        return name, (folder / name).read_bytes()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in files:
            target.write(path, path.name)
    return f"{name.partition('.')[0]}.zip", archive.getvalue()

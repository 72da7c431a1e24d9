"""`sam2-3dmed serve`: segmentation by clicks, in the browser and in viewers."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sam2_3dmed_jax.commands.command_line import CheckpointName, Parser, add_compute_dtype, add_zoom, start
from sam2_3dmed_jax.errors import Stopped, UserError
from sam2_3dmed_jax.runtime import interrupts
from sam2_3dmed_jax.runtime.compute_dtype import ComputeDtypeChoice
from sam2_3dmed_jax.server.settings import DEFAULT_PORT, ServeSettings
from sam2_3dmed_jax.volume.modality import WORDS

if TYPE_CHECKING:
    from types import FrameType

    import uvicorn

HELP = "segment by clicking, in the browser or in ITK-SNAP, 3D Slicer, napari and MITK"

KEY_VARIABLE = "SAM2_3DMED_KEY"  # unlike arguments, other users of the machine cannot read it
SHUTDOWN_SECONDS = 5  # for requests in progress, after SIGTERM or Ctrl-C
MAX_CONNECTIONS = 200


@dataclass(frozen=True)
class Options:
    """The arguments of `serve`. None: not given."""

    checkpoint: str
    image: str | None
    root: str | None
    port: int
    host: str
    key: str | None
    allow_host: tuple[str, ...]
    modality: str | None
    zoom: str | None
    compute_dtype: ComputeDtypeChoice


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument("checkpoint", type=CheckpointName, metavar="CKPT|NAME", help="native checkpoint, or a name")
    parser.add_argument(
        "image", nargs="?", metavar="IMAGE", help="image that the page opens; viewers send their own images"
    )
    parser.add_argument("--root", metavar="FOLDER", help="folder of images that the page can open")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, metavar="N", help="port; 0 for a free one")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on; others than loopback need --key"
    )
    parser.add_argument(
        "--key",
        metavar="KEY",
        help=f"secret that the page and viewers must give, 16 characters or more (default: ${KEY_VARIABLE})",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name of this machine in the address bar, as behind a proxy; may be repeated",
    )
    parser.add_argument("--modality", choices=WORDS, help="of images whose files have none (default: as CKPT)")
    add_zoom(parser)
    add_compute_dtype(parser)


def run(options: Options) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    start()
    try:
        import uvicorn
        import websockets  # noqa: F401 # imported by uvicorn when the first WebSocket is opened

        from sam2_3dmed_jax.server.app import application
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs {error.name}; pip install 'sam2-3dmed-jax[serve]'") from error

    settings = _settings(options)
    app = application(settings)
    listener = _listener(settings)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(
        app,
        access_log=False,  # addresses contain names of files, which may be names of patients
        log_config=None,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        ws="websockets-sansio",
        ws_max_size=settings.max_message_bytes,
        ws_per_message_deflate=False,  # messages are small already, and this keeps memory per connection small
    )
    server = uvicorn.Server(config)
    with _stopping_on_signals(server) as received:
        print(_greeting(settings, listener), flush=True)
        server.run([listener])
    if received:
        raise Stopped("stopped; prompts are saved", received[0])


def _settings(options: Options) -> ServeSettings:
    """Return the settings.

    Raises:
        UserError: an argument does not fit.
    """
    from sam2_3dmed_jax.server.security import check_exposure
    from sam2_3dmed_jax.volume.zoom import OFF, parse_zoom

    if options.image is not None and options.root is not None:
        raise UserError("--root: an image is given too; give one of them")
    if options.root is not None and not Path(options.root).is_dir():
        raise UserError(f"--root: {options.root} is not a folder; give the folder that contains the images")
    if options.image is not None and not Path(options.image).exists():
        raise UserError(f"{options.image} does not exist; give an image, or --root FOLDER")
    if not 0 <= options.port <= 65535:
        raise UserError(f"--port: {options.port} is not a port; give 1 to 65535, or 0 for a free one")
    settings = ServeSettings(
        model=options.checkpoint,
        image=None if options.image is None else Path(options.image).absolute(),
        root=None if options.root is None else Path(options.root).resolve(),
        host=options.host,
        port=options.port,
        key=options.key or os.environ.get(KEY_VARIABLE) or None,
        allowed_hosts=options.allow_host,
        modality=options.modality,
        zoom=parse_zoom(options.zoom or OFF),
        compute_dtype=options.compute_dtype,
    )
    check_exposure(settings)
    return settings


def _listener(settings: ServeSettings) -> socket.socket:
    """Return the socket that listens, so that the address is known, and its errors are, before the first request.

    Raises:
        UserError: the address does not exist on this machine, or another program listens there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # so that requests wait from the moment that the address is printed
    except OSError as error:
        raise UserError(
            f"--host {settings.host} --port {settings.port}: {error.strerror or error}; give another, or --port 0"
        ) from error
    return listener


def _greeting(settings: ServeSettings, listener: socket.socket) -> str:
    """Return the lines that tell the user what to open."""
    host, port = settings.host, listener.getsockname()[1]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    elif ":" in host:
        host = f"[{host}]"
    # The key is not printed: outputs of jobs are files that others may read.
    address = f"http://{host}:{port}"
    query, too = ("", "") if settings.key is None else ("/?key=KEY with your key", ", with your key")
    return (
        f"page: {address}{query}\n"
        f"viewers: {address} as the server of nnInteractive{too}\n"
        "for research use only; Ctrl-C ends the server"
    )


@contextlib.contextmanager
def _stopping_on_signals(server: uvicorn.Server) -> Iterator[list[int]]:
    """Yield a list of the signals that a server has received; uvicorn repeats them when it has shut down in order."""
    received: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        server.should_exit = True  # also before uvicorn handles signals itself

    with interrupts.handled_by(stop, signal.SIGTERM, signal.SIGINT):
        yield received

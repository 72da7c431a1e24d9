"""A server in a thread of this process, on a free port, with a small model of random weights."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette

from sam2_3dmed_jax.commands.serve import SHUTDOWN_SECONDS
from sam2_3dmed_jax.server.app import application
from sam2_3dmed_jax.server.settings import ServeSettings


@dataclass(frozen=True)
class RunningServer:
    port: int
    settings: ServeSettings

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def served(app: Starlette, port: int = 0) -> Iterator[int]:
    """Serve an application on this machine until the block ends, and yield its port."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(
        app, access_log=False, log_config=None, ws="websockets-sansio", timeout_graceful_shutdown=SHUTDOWN_SECONDS
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"


@contextlib.contextmanager
def running_server(folder: Path, model: str, **settings: Any) -> Iterator[RunningServer]:
    """Run a server until the block ends; `folder` is for its state."""
    chosen = ServeSettings(model=model, state_folder=folder, **settings)
    with served(application(chosen)) as port:
        yield RunningServer(port, chosen)

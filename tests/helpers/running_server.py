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

from sam2_3dmed_jax import save_model
from sam2_3dmed_jax.server.app import application
from sam2_3dmed_jax.server.settings import ServeSettings
from tests.helpers.scans import small_model


@dataclass(frozen=True)
class RunningServer:
    port: int
    settings: ServeSettings

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def small_checkpoint(folder: Path) -> str:
    """Write the model of `tests.helpers.scans` and return its folder."""
    if not folder.exists():
        save_model(small_model(), folder)
    return str(folder)


@contextlib.contextmanager
def running_server(folder: Path, model: str, **settings: Any) -> Iterator[RunningServer]:
    """Run a server until the block ends; `folder` is for its state."""
    chosen = ServeSettings(model=model, state_folder=folder, **settings)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(application(chosen), access_log=False, log_config=None, ws="websockets-sansio")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield RunningServer(listener.getsockname()[1], chosen)
    finally:
        server.should_exit = True
        thread.join()

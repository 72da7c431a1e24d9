"""Open sessions of a server: a bounded number of images, of which idle ones are closed."""

from __future__ import annotations

import functools
import secrets
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.atomic_files import write_errors
from sam2_3dmed_jax.runtime.hashing import sha256_of_text
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.scan.images import open_image
from sam2_3dmed_jax.scan.models import ModelSource, model_source
from sam2_3dmed_jax.scan.scan import Scan
from sam2_3dmed_jax.server.files import ImageFiles
from sam2_3dmed_jax.server.session import InteractiveSession
from sam2_3dmed_jax.server.settings import ServeSettings
from sam2_3dmed_jax.volume.zoom import Zoom

T = TypeVar("T")


class BusyError(Exception):
    """All sessions are in use; HTTP answers with 503."""


class UnknownSessionError(Exception):
    """The session has never existed or has been closed; HTTP answers with 410."""


class Sessions:
    """The sessions of all adapters, which share one model. Methods may be called from any thread."""

    def __init__(self, settings: ServeSettings):
        """Read the description of the model; its weights are loaded with the first image.

        Raises:
            UserError: the checkpoint does not exist, is damaged, or takes no prompts; or the state folder cannot
                be made.
        """
        self.settings = settings
        self.files = ImageFiles(settings.image, settings.root, settings.max_listed)
        self._lock = threading.Lock()
        self._opening = threading.Lock()  # one image at a time, since each needs memory of several volumes
        self._sessions: dict[str, InteractiveSession] = {}
        self._ids: dict[Path, str] = {}  # of images from files
        with write_errors(settings.state_folder):
            settings.state_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        source = model_source(settings.model, settings.order, settings.compute_dtype)
        self._model: ModelSource = replace(source, load=_once(source.load))

    @property
    def licence(self) -> str:
        """Licence of the weights, as their checkpoint states it."""
        return str(self._model.info.provenance.get("licence", "not stated"))

    def open(self, image: Path) -> str:
        """Open an image file, with the prompts that it had when it was open before; slow.

        Args:
            image: a path from `files.path_of`, or of an uploaded image.

        Returns:
            The id of the session; of an image that is open already, the id of its session.

        Raises:
            UserError: the image cannot be read.
            BusyError: too many images are open and in use.
        """
        with self._opening:
            with self._lock:
                known = self._ids.get(image)
            if known is not None and known in self._sessions:
                return known
            session_id = self._add(functools.partial(self._scan, image, None), self._prompts_file(image))
            with self._lock:
                self._ids[image] = session_id
        return session_id

    def open_array(self, array: np.ndarray, affine: np.ndarray, zoom: Zoom | None = None) -> str:
        """Open voxels that a client sent; their prompts are not stored.

        Args:
            array: `[i, j, k]`.
            affine: `[4, 4]`, voxel index (i, j, k, 1) to RAS millimetres.
            zoom: on each object; None: as the server was started with.

        Returns:
            The id of the session.

        Raises:
            UserError: the voxels are not an image.
            BusyError: too many images are open and in use.
        """
        with self._opening:
            return self._add(functools.partial(self._scan, array, affine, zoom=zoom), None)

    def get(self, session_id: str) -> InteractiveSession:
        """Return an open session.

        Raises:
            UnknownSessionError: it is not open.
        """
        with self._lock:
            session = self._sessions.get(session_id)
        if session is None:
            raise UnknownSessionError("the image is not open any more; open it again")
        return session

    def close(self, session_id: str) -> None:
        """Close a session if it is open, without waiting for its worker."""
        with self._lock:
            session = self._sessions.pop(session_id, None)
            self._ids = {image: known for image, known in self._ids.items() if known != session_id}
        if session is not None:
            session.close(timeout=0)

    def close_idle(self) -> None:
        """Close the sessions that nobody has used for `idle_seconds`; called from time to time."""
        with self._lock:
            idle = [key for key, it in self._sessions.items() if it.idle_seconds > self.settings.idle_seconds]
        for session_id in idle:
            self.close(session_id)

    def close_all(self, timeout: float) -> None:
        """Close all sessions, and wait up to `timeout` seconds for each to write its prompts."""
        with self._lock:
            sessions = list(self._sessions.values())
            self._sessions.clear()
            self._ids.clear()
        for session in sessions:
            session.close(timeout=0)
        for session in sessions:
            session.close(timeout)

    def __len__(self) -> int:
        with self._lock:
            return len(self._sessions)

    def _add(self, open_scan: Callable[[Progress], Scan], prompts_file: Path | None) -> str:
        self._make_room()
        session = InteractiveSession(open_scan, prompts_file)
        session_id = secrets.token_urlsafe(16)
        with self._lock:
            self._sessions[session_id] = session
        return session_id

    def _make_room(self) -> None:
        """Close the session that has been idle for the longest time, if no further one is allowed.

        Raises:
            BusyError: all are in use.
        """
        with self._lock:
            if len(self._sessions) < self.settings.max_sessions:
                return
            idle = {session_id: session.idle_seconds for session_id, session in self._sessions.items()}
        longest = max(idle, key=idle.__getitem__)
        if not idle[longest]:
            raise BusyError(f"{len(idle)} images are open and in use, the most this server allows; close one")
        self.close(longest)

    def _scan(
        self, image: Path | np.ndarray, affine: np.ndarray | None, progress: Progress, zoom: Zoom | None = None
    ) -> Scan:
        opened = open_image(image, affine)  # reads the header only
        check_voxels(opened.grid.shape, self.settings.max_voxels)
        zoom = self.settings.zoom if zoom is None else zoom
        return Scan(opened, self._model, modality=self.settings.modality, zoom=zoom, progress=progress)

    def _prompts_file(self, image: Path) -> Path:
        """Return the file of an image's prompts; its name is a hash, since file names may contain patient names."""
        folder = self.settings.state_folder / "prompts"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = image.stat()
        identity = f"{image.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
        return folder / f"{sha256_of_text(identity)[:32]}.json"


def check_voxels(shape: tuple[int, ...], most: int) -> None:
    """Refuse an image that is too large.

    Raises:
        UserError: it has more than `most` voxels.
    """
    voxels = int(np.prod(shape, dtype=object))
    if voxels > most:
        raise UserError(f"the image has {voxels} voxels, and this server allows {most}; crop it")


def _once(load: Callable[[], T]) -> Callable[[], T]:
    """Return a function that calls `load` the first time and returns the same result each time, in any thread."""
    lock, cached = threading.Lock(), functools.cache(load)  # without the lock, two threads may call `load`

    def load_once() -> T:
        with lock:
            return cached()

    return load_once

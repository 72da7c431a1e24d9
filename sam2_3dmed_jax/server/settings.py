"""Settings of the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sam2_3dmed_jax.runtime.cache_folder import cache_folder
from sam2_3dmed_jax.runtime.compute_dtype import ComputeDtypeChoice

if TYPE_CHECKING:
    from sam2_3dmed_jax.inference.propagation import PropagationOrder  # which loads JAX
    from sam2_3dmed_jax.volume.zoom import Zoom

MIB = 2**20
DEFAULT_PORT = 1527  # of nnInteractive's server, which viewers propose


@dataclass(frozen=True)
class ServeSettings:
    """What is served, to whom, and within which limits.

    Attributes:
        model: folder of a checkpoint, or a name of published weights.
        image: the image that the page opens, if any.
        root: folder with images that the page can open, if any.
        host: address to listen on.
        port: port to listen on; 0 for any free one.
        key: secret that requests must have; None: only on a loopback address.
        allowed_hosts: further names of this machine in addresses, as behind a proxy.
        modality: ct, mr or pet, for images whose files have none; None: as the model was trained.
        order: order of the two directions of propagation.
        zoom: on each object; viewers of nnInteractive may turn it on and off.
        compute_dtype: as in `load_model`.
        state_folder: prompts of each image, and uploaded images.
        max_sessions: images that are open at the same time.
        idle_seconds: an image that nobody uses is closed after this time; its prompts are kept on disk.
        liveness_seconds: a viewer that sends no heartbeat loses its session after this time.
        max_upload_bytes: of one request with voxels, as it arrives.
        max_json_bytes: of any other request.
        max_message_bytes: of one WebSocket message, such as a drawn mask.
        max_voxels: of one image.
        max_listed: images of `root` that are listed.
    """

    model: str
    image: Path | None = None
    root: Path | None = None
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    modality: str | None = None
    order: PropagationOrder = "sequential"
    zoom: Zoom = "off"
    compute_dtype: ComputeDtypeChoice = "auto"
    state_folder: Path = field(default_factory=lambda: cache_folder() / "serve")
    max_sessions: int = 4
    idle_seconds: float = 1800.0
    liveness_seconds: float = 120.0
    max_upload_bytes: int = 1024 * MIB
    max_json_bytes: int = MIB
    max_message_bytes: int = 16 * MIB
    max_voxels: int = 2**28
    max_listed: int = 2000

"""What every opened checkpoint offers: the names, shapes and types of its tensors, and one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.model.checkpoint import CheckpointInfo

FLOATS = ("bfloat16", "float16", "float32")  # read as float32, exactly


@dataclass(frozen=True)
class Tensor:
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Source:
    """An opened checkpoint; no value has been read."""

    path: Path
    kind: str  # for people: what sort of file it is
    tensors: dict[str, Tensor]
    read: Callable[[str], np.ndarray]  # float32; may be a view of the file, so copy what is kept
    files: tuple[Path, ...]  # that hold the weights
    info: CheckpointInfo | None = None  # of a native checkpoint
    image_size: int | None = None  # in pixels, where the source states one
    provenance: dict[str, object] = field(default_factory=dict)  # that the source itself carries

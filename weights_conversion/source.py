"""The record of an opened checkpoint: names, shapes and types of its tensors, and a reader of single tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.model.checkpoint import CheckpointInfo

FLOATS = ("bfloat16", "float16", "float32", "float64")  # read as float32; only float64 is rounded


@dataclass(frozen=True)
class Tensor:
    """Shape and type of a tensor, from the header."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Source:
    """An opened checkpoint, of which no values have been read."""

    path: Path
    kind: str  # description of the file format
    tensors: dict[str, Tensor]
    read: Callable[[str], np.ndarray]  # returns float32, possibly a view of the file: copy a tensor to keep it
    files: tuple[Path, ...]  # files of the weights
    info: CheckpointInfo | None = None  # for a native checkpoint
    image_size: int | None = None  # in pixels, if the source states one
    provenance: dict[str, object] = field(default_factory=dict)  # record that is stored in the source
    reading: dict[str, str] = field(
        default_factory=dict
    )  # how the model was found in the file (`wrappers.choose_model`)

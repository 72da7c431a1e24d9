"""Native checkpoints, as a folder (Orbax) or as one `.safetensors` whose metadata holds the folder's `config.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from sam2_3dmed_jax.model.checkpoint import (
    FORMAT,
    CheckpointInfo,
    parse_info,
    read_info,
    read_weights,
    reading,
    save_weights,
)
from weights_conversion.safetensors_files import SafetensorsFile, write_safetensors
from weights_conversion.source import Source, Tensor

CONFIG_KEY = "sam2_3dmed_config"  # in the metadata of a native .safetensors
PROVENANCE_KEY = "sam2_3dmed_provenance"  # in the metadata of the others that we write
WRITE_BYTES = 32 << 20  # being written at a time; by default all are


def open_native_folder(path: Path) -> Source:
    """Open a native checkpoint's folder.

    Raises:
        UserError: it is not one, or is damaged.
    """
    import orbax.checkpoint.experimental.v1 as ocp

    info = read_info(path)
    loaded: dict[str, Any] = {}

    def read(name: str) -> np.ndarray:
        if not loaded:  # Orbax takes as long for one tensor as for all
            loaded.update(read_weights(path))
        return np.asarray(loaded[name], np.float32)

    with reading(path) as folder:
        shapes = dict(ocp.metadata(folder).metadata)
    tensors = {name: Tensor(tuple(leaf.shape), np.dtype(leaf.dtype).name) for name, leaf in shapes.items()}
    files = tuple(sorted(file for file in (path / "weights").rglob("*") if file.is_file()))
    return Source(path, "native folder", tensors, read, files, info, provenance=info.provenance)


def open_native_safetensors(file: SafetensorsFile) -> Source:
    """A `.safetensors` that has our configuration in its metadata.

    Raises:
        UserError: a configuration that this version cannot read.
    """
    info = parse_info(file.metadata[CONFIG_KEY], str(file.path))
    return Source(
        file.path, "native .safetensors", file.tensors, file.read, (file.path,), info, provenance=info.provenance
    )


def write_native_folder(
    path: Path, names: Mapping[str, object], read: Callable[[str], np.ndarray], info: CheckpointInfo
) -> None:
    """Write a native folder. Orbax wants all weights at once, and is kept from copying them."""
    import orbax.checkpoint.experimental.v1 as ocp

    weights = {name: np.array(read(name), np.float32, order="C") for name in names}
    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False  # nobody changes them while they are written
    context.memory.write_concurrent_bytes = WRITE_BYTES
    context.array.saving.use_compression = False  # of weights it saves 6 %, and holds nearly all of them a second time
    with context:
        save_weights(cast(Any, weights), path, info)


def write_native_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray], info: CheckpointInfo
) -> None:
    """Write a native `.safetensors`, tensor by tensor."""
    record = {"format": FORMAT, **dataclasses.asdict(info)}
    write_safetensors(path, shapes, read, {CONFIG_KEY: json.dumps(record)})

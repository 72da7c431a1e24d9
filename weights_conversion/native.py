"""Native checkpoints, as an Orbax folder, or as one `.safetensors` file with the `config.json` in its metadata."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from sam2_3dmed_jax.model.checkpoint import (
    CONFIG_KEY,
    FORMAT,
    CheckpointInfo,
    parse_info,
    read_info,
    read_weights,
    save_weights,
    weights_folder,
)
from weights_conversion.safetensors_files import SafetensorsFile, write_safetensors
from weights_conversion.source import Source, Tensor

PROVENANCE_KEY = "sam2_3dmed_provenance"  # in the metadata of the .safetensors that we write in other layouts
WRITE_BYTES = 32 << 20  # bytes that Orbax writes at a time; its default writes all tensors at once


def open_native_folder(path: Path) -> Source:
    """Open the folder of a native checkpoint.

    Raises:
        UserError: it is not a native checkpoint, or is damaged.
    """
    import orbax.checkpoint.experimental.v1 as ocp

    info = read_info(path)
    loaded: dict[str, Any] = {}

    def read(name: str) -> np.ndarray:
        if not loaded:  # Orbax takes as long for one tensor as for all
            loaded.update(read_weights(path))
        return np.asarray(loaded[name], np.float32)

    with weights_folder(path) as folder:
        shapes = dict(ocp.metadata(folder).metadata)
    tensors = {name: Tensor(tuple(leaf.shape), np.dtype(leaf.dtype).name) for name, leaf in shapes.items()}
    files = tuple(sorted(file for file in (path / "weights").rglob("*") if file.is_file()))
    return Source(path, "native folder", tensors, read, files, info, provenance=info.provenance)


def open_native_safetensors(file: SafetensorsFile) -> Source:
    """Open a `.safetensors` file that has a native configuration in its metadata.

    Raises:
        UserError: this version cannot read the configuration.
    """
    info = parse_info(file.metadata[CONFIG_KEY], str(file.path))
    return Source(
        file.path, "native .safetensors", file.tensors, file.read, (file.path,), info, provenance=info.provenance
    )


def write_native_folder(
    path: Path, names: Mapping[str, object], read: Callable[[str], np.ndarray], info: CheckpointInfo
) -> None:
    """Write a native folder. Orbax takes all weights at once; the settings below keep it from copying them."""
    import orbax.checkpoint.experimental.v1 as ocp

    weights = {name: np.array(read(name), np.float32, order="C") for name in names}
    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False  # they do not change while they are written
    context.memory.write_concurrent_bytes = WRITE_BYTES
    context.array.saving.use_compression = False  # it saves 6 % of the size, and needs memory for a second copy
    with context:
        save_weights(cast(Any, weights), path, info)


def write_native_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray], info: CheckpointInfo
) -> None:
    """Write a native `.safetensors` file, one tensor at a time."""
    record = {"format": FORMAT, **dataclasses.asdict(info)}
    write_safetensors(path, shapes, read, {CONFIG_KEY: json.dumps(record)})

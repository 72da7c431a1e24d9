"""Checkpoints of adapters alone: what a run has trained, in one `.safetensors` file, and the weights it belongs to.

The file has the adapters and every other parameter that the run trained or added (SRPP, BD). Its metadata has the
description of the merged model, and the SHA-256 of the weights that the run started from.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.adapters import adapted, adapted_kernels
from sam2_3dmed_jax.model.checkpoint import CONFIG_KEY, FORMAT, CheckpointInfo, parse_info
from sam2_3dmed_jax.runtime.atomic_files import GIVE_ROOM, atomic_path
from sam2_3dmed_jax.runtime.foreign_errors import foreign
from sam2_3dmed_jax.runtime.user_files import parse_json
from sam2_3dmed_jax.sam2.parameters import digest_of

ADAPTERS_KEY = "sam2_3dmed_adapters"  # in the metadata: format, scale, SHA-256 and name of the base weights

Read = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class Adapters:
    """The content of a file of adapters."""

    base: str  # SHA-256 of the weights it belongs to (`sam2.parameters.digest`)
    base_name: str  # `model.init` of the run
    scale: float  # of the products A @ B
    info: CheckpointInfo  # of the merged model
    tensors: Mapping[str, np.ndarray]  # adapters and complete parameters, by path

    def merged(self, read: Read) -> Read:
        """Return the reader of the merged model's parameters, from the reader of the base weights."""
        kernels = set(adapted_kernels(self.tensors))

        def read_merged(path: str) -> np.ndarray:
            if path in kernels:
                layer = path.removesuffix(".kernel")
                a, b = self.tensors[f"{layer}.lora_a"], self.tensors[f"{layer}.lora_b"]
                return np.asarray(adapted(read(path), a, b, self.scale))
            return self.tensors[path] if path in self.tensors else read(path)

        return read_merged


def write_adapters(path: str | os.PathLike[str], adapters: Adapters, hint: str = GIVE_ROOM) -> None:
    """Write a file of adapters.

    Raises:
        UserError: it cannot be written; `hint` is the end of the message.
    """
    base = {"format": FORMAT, "scale": adapters.scale, "base_sha256": adapters.base, "base": adapters.base_name}
    config = {"format": FORMAT, **dataclasses.asdict(adapters.info)}
    tensors = {name: np.ascontiguousarray(value, np.float32) for name, value in adapters.tensors.items()}
    with atomic_path(path, hint=hint) as temporary:
        # `save_file` of the package would give the file to its owner alone.
        temporary.write_bytes(save(tensors, {ADAPTERS_KEY: json.dumps(base), CONFIG_KEY: json.dumps(config)}))


def read_adapters(path: str | os.PathLike[str]) -> Adapters:
    """Read a file of adapters.

    Raises:
        UserError: it is not one, or is damaged.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: the file does not exist; give RUN/adapters/final.safetensors of a run with LoRA")
    with (
        foreign("safetensors", lambda reason: f"{path}: it cannot be read ({reason}); copy the file again"),
        safe_open(path, "numpy") as file,
    ):
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dictionary)
    if ADAPTERS_KEY not in metadata or CONFIG_KEY not in metadata:
        raise UserError(f"{path}: it has no adapters; give RUN/adapters/final.safetensors of a run with LoRA")
    info = parse_info(metadata[CONFIG_KEY], str(path))
    try:
        record = parse_json(metadata[ADAPTERS_KEY], str(path), "copy the file again")
        if record["format"] != FORMAT:
            raise UserError(f"{path}: the format is {record['format']}, this version reads {FORMAT}; use another one")
        base, name, scale = str(record["base_sha256"]), str(record["base"]), float(record["scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its record cannot be read ({error!r}); copy the file again") from error
    unpaired = [layer for layer in adapted_kernels(tensors) if f"{layer.removesuffix('kernel')}lora_a" not in tensors]
    broken = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if unpaired or broken:
        raise UserError(f"{path}: {(unpaired + broken)[0]} is incomplete or not finite; copy the file again")
    return Adapters(base, name, scale, info, tensors)


def check_base(path: str | os.PathLike[str], adapters: Adapters, source: str, paths: Iterable[str], read: Read) -> None:
    """Check that adapters belong to weights.

    Args:
        path: file of the adapters, for the message.
        adapters: its content.
        source: name of the weights, for the message.
        paths: of all weights.
        read: returns a weight by its path.

    Raises:
        UserError: the SHA-256 of the weights is another one.
    """
    actual = digest_of(paths, read)
    if actual != adapters.base:
        raise UserError(
            f"{path}: these adapters belong to the weights {adapters.base_name} with SHA-256 {adapters.base[:12]}, and "
            f"{source} has {actual[:12]}; give the weights that the run started from"
        )

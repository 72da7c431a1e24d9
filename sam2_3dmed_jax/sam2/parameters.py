"""A model's weights as a flat dictionary from dotted path to array, and back.

With flat paths, freezing, sharding, learning rates and conversion are tables of patterns, and compiled functions
take weights as an argument.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

Weights = dict[str, jax.Array]


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Weights]:
    """Split a model into its static structure and its weights by path (`image_encoder.trunk.blocks.0...`)."""
    graphdef, state = nnx.split(model)
    return graphdef, {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def merge(graphdef: nnx.GraphDef, weights: Weights) -> Any:
    """Put weights back into a model of the same structure (whose class the structure knows, and no checker)."""
    flat = [(_path(name), nnx.Param(value)) for name, value in weights.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def digest(weights: Mapping[str, Any]) -> str:
    """SHA-256 of weights, by path."""
    found = hashlib.sha256()
    for path, value in sorted(weights.items()):
        array = np.asarray(value)
        found.update(f"{path} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _path(name: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))

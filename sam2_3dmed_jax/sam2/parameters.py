"""A model's weights as a flat dictionary from dotted path to array, and back to a module.

With flat paths, freezing, sharding, learning rates and weight conversion are tables of patterns, and compiled functions
take weights as an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from sam2_3dmed_jax.runtime.hashing import sha256_of_chunks

Weights = dict[str, jax.Array]


def split(model: nnx.Module) -> tuple[nnx.GraphDef[Any], Weights]:
    """Split a model into its static structure and its weights by path (`image_encoder.trunk.blocks.0...`)."""
    graphdef, state = nnx.split(model)
    return graphdef, {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def merge(graphdef: nnx.GraphDef[Any], weights: Weights) -> Any:
    """Return a module of the given structure with the given weights.

    Its class is part of the structure and unknown to a type checker.
    """
    flat = [(_path(name), nnx.Param(value)) for name, value in weights.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def digest(weights: Mapping[str, Any]) -> str:
    """Return the SHA-256 over paths, dtypes, shapes and values of weights, in the order of paths."""
    return digest_of(weights, weights.__getitem__)


def digest_of(paths: Iterable[str], read: Callable[[str], Any]) -> str:
    """Return the `digest` of weights that `read` returns by path; one is in memory at a time."""

    def chunks() -> Iterator[bytes | memoryview]:
        for path in sorted(paths):
            array = np.asarray(read(path))
            yield f"{path} {array.dtype} {array.shape}\n".encode()
            yield np.ascontiguousarray(array).data

    return sha256_of_chunks(chunks())


def _path(name: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))

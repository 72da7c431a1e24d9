"""Image features of a volume, encoded in blocks of slices and stored on the host.

Device memory holds one block, for any depth. A block is encoded when its slices are first read, or earlier by `encode`,
in any order, and never again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sam2_3dmed_jax.inference.host_arrays import HostArrays
from sam2_3dmed_jax.inference.padding import next_power_of_two, pad_rows
from sam2_3dmed_jax.model.sam2_3dmed import SAM2With3DMed
from sam2_3dmed_jax.model.slice_position import SlicePosition
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.sam2.model import SAM2, SliceFeatures
from sam2_3dmed_jax.sam2.parameters import Weights, merge
from sam2_3dmed_jax.volume.intensity import PreparedSlices

BLOCK = 16  # slices that one call of `propagate_block` propagates; a power of two
# Pixels that one call of `encode_block` encodes: one slice of 1024 px. More are not faster, and a last block that is
# not full costs as much as a full one.
PIXELS_PER_ENCODING = 1 << 20

Slices = np.ndarray | PreparedSlices  # float32 [D, S, S, 3], normalised


class FeatureStore:
    """Features and slice context of one volume, as host arrays.

    Attributes:
        arrays: allocator of the session's host arrays.
        depth: D, slices of the volume.
        embedding: `[D, S/16, S/16, C]`; zeros where a slice is not encoded yet, as in the next two.
        stride8: `[D, S/8, S/8, C/4]`.
        stride4: `[D, S/4, S/4, C/8]`.
        context: float32 `[D, C]`, added to the embedding of each slice; None if the model has no context, or before
            all slices are encoded.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef[Any],
        weights: Weights,
        model: SAM2,
        slices: Slices,
        arrays: HostArrays,
        progress: Progress | None = None,
    ):
        """Take normalised `slices [D, S, S, 3]`, and allocate their features in `arrays`; nothing is encoded yet."""
        self.arrays = arrays
        self.depth = len(slices)
        dtype = jnp.dtype(model.config.compute_dtype)
        side, c = model.config.image_size // 16, model.config.d_model
        self.embedding = arrays.zeros((self.depth, side, side, c), dtype)
        self.stride8 = arrays.zeros((self.depth, 2 * side, 2 * side, c // 4), dtype)
        self.stride4 = arrays.zeros((self.depth, 4 * side, 4 * side, c // 8), dtype)
        self.context: np.ndarray | None = None
        self._graphdef, self._weights, self._model = graphdef, weights, model
        self._slices: Slices | None = slices  # None when all are encoded, so that their memory can be freed
        self._progress = progress
        self._block_size = slices_per_encoding(model.config.image_size)
        self._position_embeddings: dict[int, np.ndarray] = {}  # SRPP embeddings of each encoded block

    def encode(self, slices: Iterable[int] | None = None) -> None:
        """Encode the blocks of some slices in this order, or all blocks; blocks that are encoded already are left out.

        The context of a slice depends on all slices, so that a model with slice context encodes all of them.
        """
        has_context = slice_position_of(self._model) is not None
        order = range(self.depth) if slices is None else (int(index) for index in slices)
        blocks = dict.fromkeys(index // self._block_size for index in order)
        if has_context:
            blocks |= dict.fromkeys(range(self._block_count))
        for block in blocks:
            if block not in self._position_embeddings:
                self._encode_block(block)
        if len(self._position_embeddings) == self._block_count:
            self._slices = None
        if has_context and self.context is None:
            embedded = np.concatenate([self._position_embeddings[block] for block in range(self._block_count)])
            self.context = _context_of_slices(self._graphdef, self._weights, self._model, embedded)

    @property
    def _block_count(self) -> int:
        return -(-self.depth // self._block_size)

    def _encode_block(self, number: int) -> None:
        """Store the features and the SRPP embeddings of a block of slices."""
        assert self._slices is not None  # It is dropped with the last block.
        start = number * self._block_size
        stop = min(start + self._block_size, self.depth)
        block = pad_rows(np.asarray(self._slices[start:stop], np.float32), self._block_size)
        features, embedded = jax.device_get(encode_block(self._graphdef, self._weights, block))
        count = stop - start
        self.embedding[start:stop] = features.embedding[:count]
        self.stride8[start:stop] = features.stride8[:count]
        self.stride4[start:stop] = features.stride4[:count]
        self._position_embeddings[number] = embedded[:count]
        if self._progress:
            done = sum(len(block) for block in self._position_embeddings.values())
            self._progress("encoding slices", done, self.depth)

    def with_context_of(self, graphdef: nnx.GraphDef[Any], weights: Weights, model: SAM2) -> FeatureStore:
        """Return a store of the same features, which are not encoded again, with the slice context of another model.

        Args:
            graphdef: the structure of a model with the same encoder.
            weights: its weights.
            model: the model.
        """
        self.encode()
        store = copy(self)
        store.context = None
        store._graphdef, store._weights, store._model = graphdef, weights, model
        if slice_position_of(model):
            blocks = (
                (start, pad_rows(self.embedding[start : start + BLOCK], BLOCK)) for start in range(0, self.depth, BLOCK)
            )
            embedded = [
                np.asarray(embed_block(graphdef, weights, block))[: self.depth - start] for start, block in blocks
            ]
            store.context = _context_of_slices(graphdef, weights, model, np.concatenate(embedded))
        return store

    def gather(self, index: Sequence[int] | np.ndarray) -> tuple[SliceFeatures, np.ndarray]:
        """Return the features and the context of some slices, as host arrays with leading axis `len(index)`.

        Slices that are not encoded yet are encoded.
        """
        at = np.asarray(index)
        self.encode(at)
        features = SliceFeatures(self.embedding[at], self.stride8[at], self.stride4[at])
        channels = self.embedding.shape[-1]
        context = np.zeros((len(at), channels), np.float32) if self.context is None else self.context[at]
        return features, context


def slices_per_encoding(image_size: int) -> int:
    """Return the number of slices that one call of `encode_block` takes."""
    return min(BLOCK, max(1, PIXELS_PER_ENCODING // image_size**2))


@partial(jax.jit, static_argnums=0)
def encode_block(graphdef: nnx.GraphDef[Any], weights: Weights, images: jax.Array) -> tuple[SliceFeatures, jax.Array]:
    """Encode a block of normalised slices `[T, S, S, 3]`.

    Returns:
        The features, and the SRPP embeddings float32 `[T, dim]`; dim is 0 if masks do not use slice positions.
    """
    model = merge(graphdef, weights)
    features = model.encode_image(images)
    if position := slice_position_of(model):
        return features, position.embed(features.embedding).astype(jnp.float32)
    return features, jnp.zeros((len(images), 0))


@partial(jax.jit, static_argnums=0)
def embed_block(graphdef: nnx.GraphDef[Any], weights: Weights, embedding: jax.Array) -> jax.Array:
    """Return the SRPP embeddings float32 `[T, dim]` of a block of encoded slices `[T, h, w, C]`."""
    position: SlicePosition = merge(graphdef, weights).slice_position
    return position.embed(embedding).astype(jnp.float32)


@partial(jax.jit, static_argnums=0)
def slice_context(graphdef: nnx.GraphDef[Any], weights: Weights, slices: jax.Array, depth: jax.Array) -> jax.Array:
    """Return what is added to the embedding of each slice.

    Args:
        graphdef: the structure of a model with slice positions.
        weights: its weights.
        slices: `[T, dim]`, SRPP embeddings of all slices, padded from `depth` to T.
        depth: int32, slices of the volume.

    Returns:
        float32 `[T, C]`.
    """
    position = merge(graphdef, weights).slice_position
    context: jax.Array = position.to_mask(position.volume_context(slices, depth))
    return context.astype(jnp.float32)


def slice_position_of(model: SAM2) -> SlicePosition | None:
    """Return the module whose slice context is added to the features, or None if the model has none."""
    position = model.slice_position if isinstance(model, SAM2With3DMed) else None
    return position if position is not None and position.config.to_mask else None


def _context_of_slices(
    graphdef: nnx.GraphDef[Any], weights: Weights, model: SAM2, position_embeddings: np.ndarray
) -> np.ndarray | None:
    """Return the context `[D, C]` of slices with SRPP embeddings `[D, dim]`, or None if the model has no context."""
    if slice_position_of(model) is None:
        return None
    depth = len(position_embeddings)
    # Volumes of similar depth share a compilation.
    padded = pad_rows(position_embeddings, max(BLOCK, next_power_of_two(depth)))
    return np.asarray(slice_context(graphdef, weights, padded, np.int32(depth)))[:depth]

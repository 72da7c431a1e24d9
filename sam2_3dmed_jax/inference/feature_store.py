"""Image features of a volume, encoded in blocks of slices and kept on the host.

Device memory holds one block whatever the depth; a refinement reads the store and encodes nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sam2_3dmed_jax.inference.host_arrays import HostArrays
from sam2_3dmed_jax.model.sam2_3dmed import SAM2With3DMed
from sam2_3dmed_jax.model.slice_position import SlicePosition
from sam2_3dmed_jax.prompts.prompt import power_of_two
from sam2_3dmed_jax.sam2.model import SAM2, SliceFeatures
from sam2_3dmed_jax.sam2.parameters import Weights, merge
from sam2_3dmed_jax.volume.intensity import PreparedSlices

BLOCK = 16  # slices walked by one call of a compiled function, and at most encoded
# Pixels of the slices that are encoded at once: one slice of 1024 px. More are no faster, and a last block that is not
# full costs as much as one that is.
PIXELS = 1 << 20

Slices = np.ndarray | PreparedSlices  # float32 [D, S, S, 3], normalised
Progress = Callable[[str, int, int], None]  # (what, done, total)


class FeatureStore:
    """Features and slice context of one volume."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        weights: Weights,
        model: SAM2,
        slices: Slices,
        arrays: HostArrays,
        progress: Progress | None = None,
    ):
        """Encode normalised `slices [D, S, S, 3]`, a block at a time, into `arrays`."""
        self.arrays = arrays
        self.depth = len(slices)
        dtype = jnp.dtype(model.config.compute_dtype)
        side, c = model.config.image_size // 16, model.config.d_model
        self.embedding = arrays.zeros((self.depth, side, side, c), dtype)
        self.stride8 = arrays.zeros((self.depth, 2 * side, 2 * side, c // 4), dtype)
        self.stride4 = arrays.zeros((self.depth, 4 * side, 4 * side, c // 8), dtype)
        position = slice_position_of(model)
        block_size = encoded_at_once(model.config.image_size)
        embeddings = np.zeros((-(-self.depth // BLOCK) * BLOCK, position.config.dim if position else 0), np.float32)
        for start in range(0, self.depth, block_size):
            stop = min(start + block_size, self.depth)
            block = np.zeros((block_size, *slices.shape[1:]), np.float32)
            block[: stop - start] = slices[start:stop]
            features, embedded = jax.device_get(encode_block(graphdef, weights, block))
            self.embedding[start:stop] = features.embedding[: stop - start]
            self.stride8[start:stop] = features.stride8[: stop - start]
            self.stride4[start:stop] = features.stride4[: stop - start]
            embeddings[start:stop] = embedded[: stop - start]
            if progress:
                progress("encoding slices", stop, self.depth)
        self.context: np.ndarray | None = None  # [D, C], or None without SRPP or its path to the mask
        if position:
            self.context = _context(graphdef, weights, embeddings, self.depth)

    def with_context_of(self, graphdef: nnx.GraphDef, weights: Weights, model: SAM2) -> FeatureStore:
        """The same features, which are not encoded again, with the slice context of another model.

        Args:
            graphdef: the structure of a model with the same encoder.
            weights: its weights.
            model: the model.
        """
        store = copy(self)
        store.context = None
        if position := slice_position_of(model):
            embeddings = np.zeros((-(-self.depth // BLOCK) * BLOCK, position.config.dim), np.float32)
            for start in range(0, self.depth, BLOCK):
                stop = min(start + BLOCK, self.depth)
                block = np.zeros((BLOCK, *self.embedding.shape[1:]), self.embedding.dtype)
                block[: stop - start] = self.embedding[start:stop]
                embedded = np.asarray(_embed_block(graphdef, weights, block))
                embeddings[start:stop] = embedded[: stop - start]
            store.context = _context(graphdef, weights, embeddings, self.depth)
        return store

    def gather(self, index: Sequence[int] | np.ndarray) -> tuple[SliceFeatures, np.ndarray]:
        """Features and context of some slices, as host arrays with leading axis `len(index)`."""
        at = np.asarray(index)
        features = SliceFeatures(self.embedding[at], self.stride8[at], self.stride4[at])  # type: ignore[arg-type]
        channels = self.embedding.shape[-1]
        context = np.zeros((len(at), channels), np.float32) if self.context is None else self.context[at]
        return features, context


def encoded_at_once(size: int) -> int:
    """How many slices of `size` pixels a side one call of `encode_block` takes."""
    return min(BLOCK, max(1, PIXELS // size**2))


@partial(jax.jit, static_argnums=0)
def encode_block(graphdef: nnx.GraphDef, weights: Weights, images: jax.Array) -> tuple[SliceFeatures, jax.Array]:
    """Features of a block of normalised slices `[T, S, S, 3]`, and their SRPP embedding (no channels without)."""
    model = merge(graphdef, weights)
    features = model.encode_image(images)
    if position := slice_position_of(model):
        return features, position.embed(features.embedding).astype(jnp.float32)
    return features, jnp.zeros((len(images), 0))


@partial(jax.jit, static_argnums=0)
def _embed_block(graphdef: nnx.GraphDef, weights: Weights, embedding: jax.Array) -> jax.Array:
    """SRPP's embedding of slices that are encoded already, `[T, h, w, C]` to `[T, dim]`."""
    return merge(graphdef, weights).slice_position.embed(embedding).astype(jnp.float32)


def _context(graphdef: nnx.GraphDef, weights: Weights, embeddings: np.ndarray, depth: int) -> np.ndarray:
    """The context of each slice, `[D, C]`, of SRPP's embeddings, padded to whole blocks."""
    # Padded to a power of two, so that volumes of similar depth share a compilation.
    padded = np.zeros((power_of_two(len(embeddings)), embeddings.shape[1]), np.float32)
    padded[: len(embeddings)] = embeddings
    return np.asarray(slice_context(graphdef, weights, padded, np.int32(depth)))[:depth]


@partial(jax.jit, static_argnums=0)
def slice_context(graphdef: nnx.GraphDef, weights: Weights, slices: jax.Array, depth: jax.Array) -> jax.Array:
    """What is added to the features of each slice `[T, C]`, from the SRPP embeddings `[T, dim]` of `depth` slices."""
    position = merge(graphdef, weights).slice_position
    return position.to_mask(position.volume_context(slices, depth)).astype(jnp.float32)


def slice_position_of(model: SAM2) -> SlicePosition | None:
    """The module whose context the masks see, if there is one."""
    position = model.slice_position if isinstance(model, SAM2With3DMed) else None
    return position if position is not None and position.config.to_mask else None

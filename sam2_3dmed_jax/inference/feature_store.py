"""Image features of a volume, encoded in blocks of slices and kept on the device or on the host.

A block is encoded when its slices are first read, or earlier by `encode`, in any order, and never again. Features stay
on the device while it has room (`device_memory`); beyond that, and on CPU, they are host arrays, so that volumes of any
depth fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sam2_3dmed_jax.inference import device_memory
from sam2_3dmed_jax.inference.device_slices import DeviceSlices, Slices
from sam2_3dmed_jax.inference.feature_blocks import FeatureBlocks
from sam2_3dmed_jax.inference.host_arrays import HostArrays
from sam2_3dmed_jax.inference.launches import copy_to_host_async, launched_ahead
from sam2_3dmed_jax.inference.padding import pad_rows
from sam2_3dmed_jax.inference.shape_buckets import position_room
from sam2_3dmed_jax.model.sam2_3dmed import SAM2With3DMed
from sam2_3dmed_jax.model.slice_position import SlicePosition
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.sam2.model import SAM2, SliceFeatures
from sam2_3dmed_jax.sam2.parameters import Weights, merge

BLOCK = 16  # slices that one call of `propagate_block` propagates; a power of two
# Pixels that one call of `encode_block` encodes: one slice of 1024 px. More are not faster, and a last block that is
# not full costs as much as a full one.
PIXELS_PER_ENCODING = 1 << 20


class _EncodedBlock(NamedTuple):
    """A launched encoding."""

    number: int
    features: SliceFeatures  # [T, ...]
    position_embeddings: jax.Array | np.ndarray  # float32 [T, dim], of SRPP
    stays: bool  # on the device


class EncodedSlices(NamedTuple):
    """What is encoded of n slices, as host arrays that another process can use."""

    features: SliceFeatures  # [n, ...]
    position_embeddings: np.ndarray  # float32 [n, dim], of SRPP; dim is 0 if masks do not use slice positions


class FeatureStore:
    """Features and slice context of one volume.

    Attributes:
        arrays: allocator of the session's host arrays.
        depth: D, slices of the volume.
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
        """Take normalised `slices [D, S, S, 3]`; nothing is encoded yet, and `arrays` has the features on the host."""
        self.arrays = arrays
        self.depth = len(slices)
        self.context: np.ndarray | None = None
        self._graphdef, self._weights, self._model = graphdef, weights, model
        self._block_size = slices_per_encoding(model.config.image_size)
        # None when all are encoded, so that their memory can be freed.
        self._slices: DeviceSlices | None = DeviceSlices(slices, self._block_size)
        self._blocks = FeatureBlocks(model.config, arrays, self.depth, self._block_size)
        self._progress = progress
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
        missing = [block for block in blocks if block not in self._position_embeddings]
        for encoded in launched_ahead(self._launch(missing)):
            self._store(encoded)
        if len(self._position_embeddings) == self._block_count:
            self._slices = self._progress = None
        if has_context and self.context is None:
            embedded = np.concatenate([self._position_embeddings[block] for block in range(self._block_count)])
            self.context = _context_of_slices(self._graphdef, self._weights, self._model, embedded)

    @property
    def _block_count(self) -> int:
        return -(-self.depth // self._block_size)

    def _rows_of(self, block: int) -> slice:
        """Return the slices of a block."""
        start = block * self._block_size
        return slice(start, min(start + self._block_size, self.depth))

    def _launch(self, blocks: Iterable[int]) -> Iterator[_EncodedBlock]:
        """Launch the encoding of each block when it is taken."""
        for block in blocks:
            assert self._slices is not None  # They are dropped with the last block.
            features, embedded = encode_block(self._graphdef, self._weights, self._slices.block(self._rows_of(block)))
            stays = device_memory.has_room(features.embedding)
            copy_to_host_async((embedded, None if stays else features))
            yield _EncodedBlock(block, features, embedded, stays)

    def _store(self, encoded: _EncodedBlock) -> None:
        """Wait for a block, and store its features and its SRPP embeddings."""
        if encoded.stays:
            self._blocks.keep(encoded.number, jax.block_until_ready(encoded.features))  # type: ignore[no-untyped-call]
        else:
            self._blocks.store(encoded.number, jax.device_get(encoded.features))
        at = self._rows_of(encoded.number)
        embedded = jax.device_get(encoded.position_embeddings)
        self._position_embeddings[encoded.number] = embedded[: at.stop - at.start]
        if self._progress:
            done = sum(len(block) for block in self._position_embeddings.values())
            self._progress("encoding slices", done, self.depth)

    def encoded(self) -> Iterator[EncodedSlices]:
        """Yield what is encoded of all slices, in blocks and in order; missing slices are encoded."""
        self.encode()
        for block in range(self._block_count):
            at = self._rows_of(block)
            # A last block that is not full is padded, so that it needs no program of its own on the device.
            index = np.minimum(at.start + np.arange(self._block_size), self.depth - 1)
            features: SliceFeatures = jax.device_get(self._blocks.gather(index))
            rows = at.stop - at.start
            yield EncodedSlices(SliceFeatures(*(x[:rows] for x in features)), self._position_embeddings[block])

    def restore(self, slices: EncodedSlices) -> None:
        """Use what another store of the same image and model has encoded of all D slices, in place of encoding them."""
        for block in range(self._block_count):
            at = self._rows_of(block)
            padded = [pad_rows(np.asarray(x[at]), self._block_size) for x in slices.features]
            features = SliceFeatures(*jax.device_put(padded))
            stays = device_memory.has_room(features.embedding)
            self._store(_EncodedBlock(block, features, np.asarray(slices.position_embeddings[at]), stays))
        self.encode()

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
            embedded = []
            for start in range(0, self.depth, BLOCK):
                features, _ = self.gather(np.minimum(start + np.arange(BLOCK), self.depth - 1))
                embedded.append(np.asarray(embed_block(graphdef, weights, features.embedding))[: self.depth - start])
            store.context = _context_of_slices(graphdef, weights, model, np.concatenate(embedded))
        return store

    def gather(self, index: Sequence[int] | np.ndarray) -> tuple[SliceFeatures, np.ndarray]:
        """Return the features and the context of some slices, with the leading axes of `index`.

        Slices that are not encoded yet are encoded. The features are on the device if any slice of the volume is
        there, and host arrays otherwise; the context float32 `[..., C]` is a host array.
        """
        at = np.asarray(index)
        self.encode(at.reshape(-1))
        channels = self._model.config.d_model
        context = np.zeros((*at.shape, channels), np.float32) if self.context is None else self.context[at]
        return self._blocks.gather(at), context


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
    # Volumes of most depths share a compilation.
    padded = pad_rows(position_embeddings, position_room(depth))
    return np.asarray(slice_context(graphdef, weights, padded, np.int32(depth)))[:depth]

"""Encoded blocks of slices: on the device while they fit, on the host beyond that.

On the device, the arrays that the encoder returned are kept, without a copy. Programs take rows of them through one
compiled gather, whose shapes do not depend on the depth of the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.inference.host_arrays import HostArrays, release
from sam2_3dmed_jax.sam2.model import SliceFeatures


class FeatureBlocks:
    """Features of the blocks of one volume, T slices per block."""

    def __init__(self, config: Sam2Config, arrays: HostArrays, depth: int, rows: int):
        """Take the architecture, the allocator of host arrays, D and T.

        Nothing is allocated before a block is stored on the host.
        """
        self._config, self._arrays, self._depth, self._rows = config, arrays, depth, rows
        self._on_device: dict[int, SliceFeatures] = {}  # by block
        self._on_host: SliceFeatures | None = None  # the same axis as `_host_slices`
        self._host_slices = np.full(depth, -1)  # the row in `_on_host` of each slice; -1 if it is not there
        self._host_rows = 0  # rows of `_on_host` in use

    def __contains__(self, block: object) -> bool:
        """Return whether a block is stored."""
        assert isinstance(block, int)
        return block in self._on_device or self._host_slices[block * self._rows] >= 0

    def keep(self, block: int, features: SliceFeatures) -> None:
        """Keep a block on the device."""
        self._on_device[block] = features

    def store(self, block: int, features: SliceFeatures) -> None:
        """Store a block, fetched from the device, on the host.

        Raises:
            UserError: it does not fit on the disk.
        """
        start, stop = block * self._rows, min((block + 1) * self._rows, self._depth)
        count = stop - start
        if self._on_host is None:
            self._on_host = self._allocate()
        first = self._host_rows
        for stored, new in zip(self._on_host, features, strict=True):
            stored[first : first + count] = new[:count]
            release(stored)
        self._host_slices[start:stop] = np.arange(first, first + count)
        self._host_rows += count

    def gather(self, index: np.ndarray) -> SliceFeatures:
        """Return the features of stored slices with the leading axes of `index`; on the host if all blocks are there.

        Args:
            index: int, any shape.
        """
        if not self._on_device:
            return self._copied(self._host_slices[index])
        numbers = (index.reshape(-1) // self._rows).tolist()
        blocks = {number: self._on_device[number] for number in set(numbers) & self._on_device.keys()}
        blocks |= {number: self._uploaded(number) for number in set(numbers) - blocks.keys()}
        rows = (index.reshape(-1) % self._rows).astype(np.int32)
        gathered: SliceFeatures = gather_rows([blocks[number] for number in numbers], rows, index.shape)
        return gathered

    def _allocate(self) -> SliceFeatures:
        """Allocate host arrays for all slices that are not on the device."""
        starts = [block * self._rows for block in range(-(-self._depth // self._rows)) if block not in self._on_device]
        count = sum(min(self._rows, self._depth - start) for start in starts)
        dtype, c = jnp.dtype(self._config.compute_dtype), self._config.d_model
        side = self._config.image_size // 16
        return SliceFeatures(
            self._arrays.zeros((count, side, side, c), dtype),  # type: ignore[arg-type]
            self._arrays.zeros((count, 2 * side, 2 * side, c // 4), dtype),  # type: ignore[arg-type]
            self._arrays.zeros((count, 4 * side, 4 * side, c // 8), dtype),  # type: ignore[arg-type]
        )

    def _uploaded(self, block: int) -> SliceFeatures:
        """Return a block of the host on the device; a last block that is not full is padded."""
        at = self._host_slices[np.minimum(block * self._rows + np.arange(self._rows), self._depth - 1)]
        uploaded: SliceFeatures = jax.device_put(self._copied(at))
        return uploaded

    def _copied(self, rows: np.ndarray) -> SliceFeatures:
        """Return a copy of rows on the host, with the leading axes of `rows`."""
        assert self._on_host is not None  # A block is stored.
        copied = SliceFeatures(*(stored[rows] for stored in self._on_host))
        release(*self._on_host)
        return copied


@partial(jax.jit, static_argnums=2)
def gather_rows(blocks: Sequence[SliceFeatures], rows: jax.Array, shape: tuple[int, ...]) -> SliceFeatures:
    """Gather one row of each block.

    Args:
        blocks: n blocks, `[T, ...]`; the same block may be there several times.
        rows: int32 `[n]`.
        shape: leading axes of the result, of n elements.

    Returns:
        Features `[*shape, ...]`.
    """

    def stack(*parts: jax.Array) -> jax.Array:
        taken = [lax.dynamic_index_in_dim(part, row, keepdims=False) for part, row in zip(parts, rows, strict=True)]
        return jnp.stack(taken).reshape(*shape, *taken[0].shape)

    gathered: SliceFeatures = jax.tree.map(stack, *blocks)
    return gathered

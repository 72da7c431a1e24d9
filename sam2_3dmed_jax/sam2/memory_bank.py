"""Memory bank: fixed-size storage for the prompted slices and the recent slices of K objects, keyed by slice index.

Upstream keeps dictionaries from frame to output; here they are arrays of static shape. Recent slices are in ring
buffers, so that a memory is found by its slice index, and a slice without a memory leaves its slot empty. `direction`
is the direction of propagation per object: +1 towards higher slice indices, -1 towards lower ones.

The rule of which slices an object sees is in the functions below `EMPTY`, on slice indices that may be Python integers
or arrays, so that the host and the compiled functions share it. docs/explanation/semantics.md explains it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.sam2.memory_attention import MemoryTokens
from sam2_3dmed_jax.sam2.position_encoding import sine_position, sine_position_1d

EMPTY = -(1 << 20)  # the slice index of an empty slot; it is out of reach of every slice

Index = TypeVar("Index", int, jax.Array)


class RingSizes(NamedTuple):
    """The number of recent slices that an object remembers."""

    memories: int  # spatial memories
    pointers: int  # object pointers


def ring_sizes(config: Sam2Config, max_recent: int | None = None) -> RingSizes:
    """Return the ring sizes of a model; `max_recent` bounds them if propagation never looks back further."""
    sizes = RingSizes(config.num_maskmem - 1, config.max_obj_ptrs - 1)
    return sizes if max_recent is None else RingSizes(*(min(size, max_recent) for size in sizes))


def ring_slot(index: Index, size: int) -> Index:
    """Return the slot of slice `index` in a ring of `size` slots."""
    return index % size


def slice_offset(index: Index, other: Index, direction: Index) -> Index:
    """Return how many slices before `index` slice `other` is, in the direction of propagation."""
    return (index - other) * direction


def memory_in_reach(offset: Any, config: Sam2Config) -> Any:
    """Return whether a slice sees the spatial memory of the unprompted slice at `offset`: 1 to `num_maskmem - 1`."""
    return (offset >= 1) & (offset < config.num_maskmem)


def pointer_in_reach(offset: Any, reach: Any) -> Any:
    """Return whether a slice sees the pointer of the unprompted slice at `offset`: 1 to `reach` (`pointer_reach`)."""
    return (offset >= 1) & (offset <= reach)


def pointer_reach(depth: jax.Array | int, config: Sam2Config) -> jax.Array:
    """Return how many slices back pointers are seen in a volume of `depth` slices: `min(depth, max_obj_ptrs) - 1`."""
    return jnp.minimum(depth, config.max_obj_ptrs) - 1


def recent_slices(index: int, direction: int, depth: int, config: Sam2Config) -> list[int]:
    """Return the slices of a volume that the rings hold before slice `index`, nearest first."""
    offsets = range(1, ring_sizes(config).pointers + 1)
    return [other for offset in offsets if 0 <= (other := index - offset * direction) < depth]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RecentMemories:
    """Ring buffers of recent slices: 6 memories and 15 pointers, or fewer in a short clip (`ring_sizes`)."""

    memory: jax.Array  # [K, 6 or fewer, N, mem_dim]
    memory_slice: jax.Array  # int32 [K, 6 or fewer]
    pointer: jax.Array  # [K, 15 or fewer, C]
    pointer_slice: jax.Array  # int32 [K, 15 or fewer]

    @staticmethod
    def empty(config: Sam2Config, objects: int, dtype: DTypeLike, max_recent: int | None = None) -> RecentMemories:
        """Return empty rings, with at most `max_recent` slots."""
        cells = (config.image_size // 16) ** 2
        memories, pointers = ring_sizes(config, max_recent)
        return RecentMemories(
            memory=jnp.zeros((objects, memories, cells, config.mem_dim), dtype),
            memory_slice=jnp.full((objects, memories), EMPTY, jnp.int32),
            pointer=jnp.zeros((objects, pointers, config.d_model), dtype),
            pointer_slice=jnp.full((objects, pointers), EMPTY, jnp.int32),
        )

    def write(self, index: jax.Array, write: jax.Array, memory: jax.Array, pointer: jax.Array) -> RecentMemories:
        """Store slice `index [K]` where `write [K]`: `memory [K, N, mem_dim]`, `pointer [K, C]`."""
        rows = jnp.arange(index.shape[0])
        m, p = ring_slot(index, self.memory.shape[1]), ring_slot(index, self.pointer.shape[1])
        put = write[:, None]
        return RecentMemories(
            memory=self.memory.at[rows, m].set(
                jnp.where(put[..., None], memory.astype(self.memory.dtype), self.memory[rows, m])
            ),
            memory_slice=self.memory_slice.at[rows, m].set(jnp.where(write, index, self.memory_slice[rows, m])),
            pointer=self.pointer.at[rows, p].set(
                jnp.where(put, pointer.astype(self.pointer.dtype), self.pointer[rows, p])
            ),
            pointer_slice=self.pointer_slice.at[rows, p].set(jnp.where(write, index, self.pointer_slice[rows, p])),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MemoryBank:
    """The memories of K objects, with room for P prompted slices each."""

    prompted_memory: jax.Array  # [K, P, N, mem_dim]
    prompted_pointer: jax.Array  # [K, P, C]
    prompted_slice: jax.Array  # int32 [K, P]; EMPTY in empty slots
    recent: RecentMemories

    @staticmethod
    def empty(
        config: Sam2Config, objects: int, prompted: int, dtype: DTypeLike = jnp.float32, max_recent: int | None = None
    ) -> MemoryBank:
        """Return an empty bank with room for `prompted` prompted slices and at most `max_recent` recent ones."""
        cells = (config.image_size // 16) ** 2
        return MemoryBank(
            prompted_memory=jnp.zeros((objects, prompted, cells, config.mem_dim), dtype),
            prompted_pointer=jnp.zeros((objects, prompted, config.d_model), dtype),
            prompted_slice=jnp.full((objects, prompted), EMPTY, jnp.int32),
            recent=RecentMemories.empty(config, objects, dtype, max_recent),
        )

    def write_prompted(
        self, slot: jax.Array, index: jax.Array, write: jax.Array, memory: jax.Array, pointer: jax.Array
    ) -> MemoryBank:
        """Store a prompted slice `index [K]` in `slot [K]` where `write [K]`."""
        rows, put = jnp.arange(index.shape[0]), write[:, None]
        old_memory, old_pointer = self.prompted_memory[rows, slot], self.prompted_pointer[rows, slot]
        return replace(
            self,
            prompted_memory=self.prompted_memory.at[rows, slot].set(
                jnp.where(put[..., None], memory.astype(old_memory.dtype), old_memory)
            ),
            prompted_pointer=self.prompted_pointer.at[rows, slot].set(
                jnp.where(put, pointer.astype(old_pointer.dtype), old_pointer)
            ),
            prompted_slice=self.prompted_slice.at[rows, slot].set(
                jnp.where(write, index, self.prompted_slice[rows, slot])
            ),
        )

    def write_recent(self, index: jax.Array, write: jax.Array, memory: jax.Array, pointer: jax.Array) -> MemoryBank:
        """Store an unprompted slice `index [K]` where `write [K]`, in place of the oldest one."""
        return replace(self, recent=self.recent.write(index, write, memory, pointer))


class _TokenGroup(NamedTuple):
    """Memories or pointers of S slots before they are flattened to tokens."""

    values: jax.Array  # [K, S, ...]
    position: jax.Array  # [K, S, ...], broadcastable to the tokens of each slot
    valid: jax.Array  # bool [K, S]


def gather_memory_tokens(
    bank: MemoryBank,
    index: jax.Array,
    direction: jax.Array,
    depth: jax.Array | int,
    config: Sam2Config,
    temporal_encoding: jax.Array,
    project_pointer_position: Callable[[jax.Array], jax.Array] | None,
) -> MemoryTokens:
    """Return the tokens that slice `index [K]` attends to (`_prepare_memory_conditioned_features`).

    Args:
        bank: the memories.
        index: int32 `[K]`, the slice to segment.
        direction: int32 `[K]`, +1 or -1.
        depth: number of slices of the volume.
        config: the architecture.
        temporal_encoding: `maskmem_tpos_enc`, `[7, mem_dim]`: offset 1 first, prompted slices last.
        project_pointer_position: `obj_ptr_tpos_proj` of SAM 2.1, or None (2.0: pointers have no position).
    """
    k, _, cells, channels = bank.prompted_memory.shape
    selected = _selected_prompted_slices(bank, index, config)
    spatial = _spatial_memories(bank, index, direction, config, selected, temporal_encoding)
    pointer = _pointers(bank, index, direction, depth, config, selected, project_pointer_position)

    pieces = config.d_model // channels  # each pointer is split into tokens with the width of a memory
    pointers = pointer.values.shape[1] * pieces
    flat = (k, spatial.valid.shape[1] * cells, channels)
    return MemoryTokens(
        tokens=jnp.concatenate([spatial.values.reshape(flat), pointer.values.reshape(k, pointers, channels)], axis=1),
        position=jnp.concatenate(
            [spatial.position.reshape(flat), jnp.repeat(pointer.position, pieces, axis=1)], axis=1
        ),
        valid=jnp.concatenate(
            [jnp.repeat(spatial.valid, cells, axis=1), jnp.repeat(pointer.valid, pieces, axis=1)], axis=1
        ),
        pointers=pointers,
    )


def _selected_prompted_slices(bank: MemoryBank, index: jax.Array, config: Sam2Config) -> jax.Array:
    """Return bool `[K, P]`: the prompted slices that are seen, all or the nearest `max_cond_slices`."""
    selected = bank.prompted_slice != EMPTY
    if config.max_cond_slices is not None and config.max_cond_slices < selected.shape[1]:
        distance = jnp.where(selected, jnp.abs(index[:, None] - bank.prompted_slice), np.iinfo(np.int32).max)
        rank = jnp.argsort(jnp.argsort(distance, axis=1), axis=1)
        selected = selected & (rank < config.max_cond_slices)
    return selected


def _spatial_memories(
    bank: MemoryBank,
    index: jax.Array,
    direction: jax.Array,
    config: Sam2Config,
    selected: jax.Array,
    temporal_encoding: jax.Array,
) -> _TokenGroup:
    """Gather the memories of prompted slices, before or after `index`, and then of recent ones by offset."""
    k, prompted, cells, channels = bank.prompted_memory.shape
    offset = slice_offset(index[:, None], bank.recent.memory_slice, direction[:, None])
    position = jnp.concatenate(
        [
            jnp.broadcast_to(temporal_encoding[-1], (k, prompted, channels)),
            temporal_encoding[jnp.clip(offset - 1, 0, config.num_maskmem - 2)],
        ],
        axis=1,
    )
    side = config.image_size // 16
    return _TokenGroup(
        values=jnp.concatenate([bank.prompted_memory, bank.recent.memory], axis=1),
        position=position[:, :, None] + sine_position(side, side, channels).reshape(1, 1, cells, channels),
        valid=jnp.concatenate([selected, memory_in_reach(offset, config)], axis=1),
    )


def _pointers(
    bank: MemoryBank,
    index: jax.Array,
    direction: jax.Array,
    depth: jax.Array | int,
    config: Sam2Config,
    selected: jax.Array,
    project_position: Callable[[jax.Array], jax.Array] | None,
) -> _TokenGroup:
    """Gather the object pointers of prompted slices at or before `index`, and then of recent ones by offset."""
    k, _, _, channels = bank.prompted_memory.shape
    reach = pointer_reach(depth, config)
    prompted_offset = slice_offset(index[:, None], bank.prompted_slice, direction[:, None])
    recent_offset = slice_offset(index[:, None], bank.recent.pointer_slice, direction[:, None])
    offset = jnp.concatenate([prompted_offset, recent_offset], axis=1)
    valid = jnp.concatenate([selected & (prompted_offset >= 0), pointer_in_reach(recent_offset, reach)], axis=1)
    values = jnp.concatenate([bank.prompted_pointer, bank.recent.pointer], axis=1)
    if project_position is None:
        position = jnp.zeros((k, values.shape[1], channels))
    else:
        relative = jnp.where(valid, offset, 0) / jnp.maximum(reach, 1)
        position = project_position(sine_position_1d(relative, config.d_model))
    return _TokenGroup(values, position, valid)

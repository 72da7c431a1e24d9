"""Memory bank: fixed-size storage for the prompted slices and the recent slices of K objects, keyed by slice index.

Upstream keeps dictionaries from frame to output; here they are arrays of static shape. Recent slices are in ring
buffers, so that a memory is found by its slice index, and a slice without a memory leaves its slot empty. `direction`
is the direction of propagation per object: +1 towards higher slice indices, -1 towards lower ones.

`memory_selection.py` has the rules of which memories are kept and seen. docs/explanation/semantics.md explains SAM 2's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import MemorySelection, Sam2Config
from sam2_3dmed_jax.sam2.memory_attention import MemoryTokens
from sam2_3dmed_jax.sam2.memory_selection import (
    EMPTY,
    MemorySlots,
    NewMemory,
    memory_rule,
    pointer_in_reach,
    pointer_reach,
    ring_sizes,
    ring_slot,
    seen_memories,
    slice_offset,
)
from sam2_3dmed_jax.sam2.position_encoding import sine_position, sine_position_1d


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RecentMemories:
    """Memories of unprompted slices: by SAM 2's rule the last 6 memories and 15 pointers, or fewer in a short clip."""

    memory: jax.Array  # [K, S, N, mem_dim], S memories (`ring_sizes`)
    memory_slice: jax.Array  # int32 [K, S]
    pointer: jax.Array  # [K, 15 or fewer, C]
    pointer_slice: jax.Array  # int32 [K, 15 or fewer]
    memory_score: jax.Array | None = None  # float32 [K, S], of a rule that ranks memories
    selection: MemorySelection = field(default="recent", metadata={"static": True})  # the rule

    @staticmethod
    def empty(config: Sam2Config, objects: int, dtype: DTypeLike, max_recent: int | None = None) -> RecentMemories:
        """Return empty rings, with at most `max_recent` slots."""
        cells = (config.image_size // 16) ** 2
        memories, pointers = ring_sizes(config, max_recent)
        ranked = memory_rule(config.memory_selection).ranked
        return RecentMemories(
            memory=jnp.zeros((objects, memories, cells, config.mem_dim), dtype),
            memory_slice=jnp.full((objects, memories), EMPTY, jnp.int32),
            pointer=jnp.zeros((objects, pointers, config.d_model), dtype),
            pointer_slice=jnp.full((objects, pointers), EMPTY, jnp.int32),
            memory_score=jnp.zeros((objects, memories)) if ranked else None,
            selection=config.memory_selection,
        )

    @property
    def memory_slots(self) -> MemorySlots:
        """The spatial memories."""
        return MemorySlots(self.memory, self.memory_slice, self.memory_score)

    def write(
        self,
        index: jax.Array,
        write: jax.Array,
        memory: jax.Array,
        pointer: jax.Array,
        confidence: jax.Array | None = None,
    ) -> RecentMemories:
        """Store slice `index [K]` where `write [K]`.

        Args:
            index: int32 `[K]`.
            write: bool `[K]`; False leaves the memories of the object unchanged.
            memory: `[K, N, mem_dim]`; the rule decides whether it is kept, and in the place of which one.
            pointer: `[K, C]`, in place of the oldest one.
            confidence: float32 `[K]`, see `memory_selection.memory_confidence`.
        """
        rows = jnp.arange(index.shape[0])
        new = NewMemory(index, write, memory, confidence)
        m, kept, score = memory_rule(self.selection).place(self.memory_slots, new)
        p = ring_slot(index, self.pointer.shape[1])
        return RecentMemories(
            memory=self.memory.at[rows, m].set(
                jnp.where(kept[:, None, None], memory.astype(self.memory.dtype), self.memory[rows, m])
            ),
            memory_slice=self.memory_slice.at[rows, m].set(jnp.where(kept, index, self.memory_slice[rows, m])),
            pointer=self.pointer.at[rows, p].set(
                jnp.where(write[:, None], pointer.astype(self.pointer.dtype), self.pointer[rows, p])
            ),
            pointer_slice=self.pointer_slice.at[rows, p].set(jnp.where(write, index, self.pointer_slice[rows, p])),
            memory_score=score,
            selection=self.selection,
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

    def write_recent(
        self,
        index: jax.Array,
        write: jax.Array,
        memory: jax.Array,
        pointer: jax.Array,
        confidence: jax.Array | None = None,
    ) -> MemoryBank:
        """Store an unprompted slice `index [K]` where `write [K]`; see `RecentMemories.write`."""
        return replace(self, recent=self.recent.write(index, write, memory, pointer, confidence))


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
    """Gather the memories of prompted slices, before or after `index`, and then the unprompted ones that are seen."""
    k, prompted, cells, channels = bank.prompted_memory.shape
    offset = slice_offset(index[:, None], bank.recent.memory_slice, direction[:, None])
    seen = seen_memories(bank.recent.memory_slots, offset, config)
    position = jnp.concatenate(
        [
            jnp.broadcast_to(temporal_encoding[-1], (k, prompted, channels)),
            jnp.broadcast_to(temporal_encoding[seen.age], (k, seen.valid.shape[1], channels)),
        ],
        axis=1,
    )
    side = config.image_size // 16
    return _TokenGroup(
        values=jnp.concatenate([bank.prompted_memory, seen.memory], axis=1),
        position=position[:, :, None] + sine_position(side, side, channels).reshape(1, 1, cells, channels),
        valid=jnp.concatenate([selected, seen.valid], axis=1),
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

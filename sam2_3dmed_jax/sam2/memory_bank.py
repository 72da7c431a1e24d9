"""The memory bank: fixed room for P prompted slices and the recent past of K objects, with validity by slice index.

Recent memories are rings keyed by slice index, so that a slice's memory is found by its offset and a slice that
wrote none leaves its offset empty (the reference's dictionaries, with static shapes). `direction` is +1 when slices
are walked upwards and -1 downwards, per object; offsets count in walking direction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.sam2.memory_attention import MemoryTokens
from sam2_3dmed_jax.sam2.position_encoding import sine_1d, sine_position

EMPTY = -(1 << 20)  # the slice index of an empty slot: no offset from it is ever in range


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Recent:
    """Rings of the slices walked last: memories by `slice % 6`, pointers by `slice % 15`; smaller in a short walk."""

    memory: jax.Array  # [K, 6 or fewer, N, mem_dim]
    memory_slice: jax.Array  # int32 [K, 6 or fewer]
    pointer: jax.Array  # [K, 15 or fewer, C]
    pointer_slice: jax.Array  # int32 [K, 15 or fewer]

    @staticmethod
    def empty(config: Sam2Config, objects: int, dtype: DTypeLike, room: int | None = None) -> Recent:
        """Rings that hold nothing; `room` is the number of slices that a walk ever looks back on, where it is known."""
        cells = (config.image_size // 16) ** 2
        memories, pointers = config.num_maskmem - 1, config.max_obj_ptrs - 1
        if room is not None:
            memories, pointers = min(memories, room), min(pointers, room)
        return Recent(
            memory=jnp.zeros((objects, memories, cells, config.mem_dim), dtype),
            memory_slice=jnp.full((objects, memories), EMPTY, jnp.int32),
            pointer=jnp.zeros((objects, pointers, config.d_model), dtype),
            pointer_slice=jnp.full((objects, pointers), EMPTY, jnp.int32),
        )

    def write(self, index: jax.Array, write: jax.Array, memory: jax.Array, pointer: jax.Array) -> Recent:
        """Store slice `index [K]` where `write [K]`: `memory [K, N, mem_dim]`, `pointer [K, C]`."""
        rows = jnp.arange(index.shape[0])
        m, p = index % self.memory.shape[1], index % self.pointer.shape[1]
        put = write[:, None]
        return Recent(
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
    """What K objects remember."""

    prompted_memory: jax.Array  # [K, P, N, mem_dim]
    prompted_pointer: jax.Array  # [K, P, C]
    prompted_slice: jax.Array  # int32 [K, P]; EMPTY where the slot holds nothing
    recent: Recent

    @staticmethod
    def empty(
        config: Sam2Config, objects: int, prompted: int, dtype: DTypeLike = jnp.float32, room: int | None = None
    ) -> MemoryBank:
        """A bank for `objects` objects with room for `prompted` prompted slices each, and `room` recent ones."""
        cells = (config.image_size // 16) ** 2
        return MemoryBank(
            prompted_memory=jnp.zeros((objects, prompted, cells, config.mem_dim), dtype),
            prompted_pointer=jnp.zeros((objects, prompted, config.d_model), dtype),
            prompted_slice=jnp.full((objects, prompted), EMPTY, jnp.int32),
            recent=Recent.empty(config, objects, dtype, room),
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


def memory_tokens(
    bank: MemoryBank,
    index: jax.Array,
    direction: jax.Array,
    depth: jax.Array | int,
    config: Sam2Config,
    slot_position: jax.Array,
    project_offset: object | None,
) -> MemoryTokens:
    """Lay a bank out as the tokens that slice `index [K]` attends to (`_prepare_memory_conditioned_features`).

    Args:
        bank: the memories.
        index: int32 `[K]`, the slice that looks.
        direction: int32 `[K]`, +1 or -1.
        depth: slices of the volume; pointers reach back `min(depth, 16) - 1` slices.
        config: the architecture.
        slot_position: `maskmem_tpos_enc`, `[7, mem_dim]`: offset 1 first, prompted slices last.
        project_offset: `obj_ptr_tpos_proj` of SAM 2.1, or None (2.0: pointers have no position).
    """
    k, prompted, cells, channels = bank.prompted_memory.shape
    recent = bank.recent

    # Spatial memories: prompted slices (all of them, past or future), then recent ones by offset.
    offset = (index[:, None] - recent.memory_slice) * direction[:, None]
    in_reach = (offset >= 1) & (offset < config.num_maskmem)
    selected = bank.prompted_slice != EMPTY
    if config.max_cond_slices is not None and config.max_cond_slices < prompted:
        distance = jnp.where(selected, jnp.abs(index[:, None] - bank.prompted_slice), jnp.iinfo(jnp.int32).max)
        rank = jnp.argsort(jnp.argsort(distance, axis=1), axis=1)
        selected = selected & (rank < config.max_cond_slices)
    memory = jnp.concatenate([bank.prompted_memory, recent.memory], axis=1)
    position = jnp.concatenate(
        [
            jnp.broadcast_to(slot_position[-1], (k, prompted, channels)),
            slot_position[jnp.clip(offset - 1, 0, config.num_maskmem - 2)],
        ],
        axis=1,
    )
    side = config.image_size // 16
    spatial_position = position[:, :, None] + sine_position(side, side, channels).reshape(1, 1, cells, channels)
    spatial_valid = jnp.concatenate([selected, in_reach], axis=1)
    slots = spatial_valid.shape[1]

    # Object pointers: prompted slices of the past of the walk, then recent ones; each split into tokens.
    reach = jnp.minimum(depth, config.max_obj_ptrs) - 1
    prompted_offset = (index[:, None] - bank.prompted_slice) * direction[:, None]
    pointer_offset = (index[:, None] - recent.pointer_slice) * direction[:, None]
    offsets = jnp.concatenate([prompted_offset, pointer_offset], axis=1)
    pointer_valid = jnp.concatenate(
        [selected & (prompted_offset >= 0), (pointer_offset >= 1) & (pointer_offset <= reach)], axis=1
    )
    pointer = jnp.concatenate([bank.prompted_pointer, recent.pointer], axis=1)
    pieces = config.d_model // channels
    pointers = pointer.shape[1] * pieces
    if project_offset is None:
        pointer_position = jnp.zeros((k, pointer.shape[1], channels))
    else:
        relative = jnp.where(pointer_valid, offsets, 0) / jnp.maximum(reach, 1)
        pointer_position = project_offset(sine_1d(relative, config.d_model))  # type: ignore[operator]

    flat = (k, slots * cells, channels)
    return MemoryTokens(
        tokens=jnp.concatenate([memory.reshape(flat), pointer.reshape(k, pointers, channels)], axis=1),
        position=jnp.concatenate(
            [spatial_position.reshape(flat), jnp.repeat(pointer_position, pieces, axis=1)], axis=1
        ),
        valid=jnp.concatenate(
            [jnp.repeat(spatial_valid, cells, axis=1), jnp.repeat(pointer_valid, pieces, axis=1)], axis=1
        ),
        pointers=pointers,
    )

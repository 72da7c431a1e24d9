"""State of each object of a session: its prompts, its prompted slices, and the results of propagated slices.

The arrays are on the host and cover the whole volume. `load_bank` fills the memory bank on the device, which has a
fixed size, from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.inference.compiled_programs import SliceResult, remember_slice
from sam2_3dmed_jax.inference.host_arrays import HostArrays, release
from sam2_3dmed_jax.prompts.prompt import Prompt
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank, RecentMemories
from sam2_3dmed_jax.sam2.memory_selection import (
    EMPTY,
    earlier_slices,
    memory_in_reach,
    memory_rule,
    ring_sizes,
    ring_slot,
    slice_offset,
)


@dataclass
class ObjectState:
    """One object of a session.

    Attributes:
        config: architecture of the model.
        depth: D, slices of the volume.
        arrays: allocates the arrays of the volume when they are first needed.
        prompts: the prompt of each prompted slice.
        pending: slices whose latest prompts have not been segmented yet.
        segmented: prompted slices that have a result.
        new_results: results of slices prompted since the last propagation. All prompts of a round are segmented from
            the same memories, as in the reference, so these results become memories only by `commit`.
        object_score_logits: float32 `[D]`.
        predicted_iou: float32 `[D]`.
        pointer: `[D, C]`.
        direction: int32 `[D]`, the direction in which each slice was propagated, +1 or -1; 0: it was not.
    """

    config: Sam2Config
    depth: int
    arrays: HostArrays
    prompts: dict[int, Prompt] = field(default_factory=dict)
    pending: list[int] = field(default_factory=list)
    segmented: set[int] = field(default_factory=set)
    new_results: dict[int, SliceResult] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Allocate the small arrays."""
        self.object_score_logits = np.zeros(self.depth, np.float32)
        self.predicted_iou = np.zeros(self.depth, np.float32)
        self.pointer = np.zeros((self.depth, self.config.d_model), jnp.dtype(self.config.compute_dtype))
        self.direction = np.zeros(self.depth, np.int32)

    @cached_property
    def mask_logits(self) -> np.ndarray:
        """float32 `[D, S/4, S/4]`."""
        side = self.config.image_size // 4
        return self.arrays.zeros((self.depth, side, side), np.float32)

    @cached_property
    def memory(self) -> np.ndarray:
        """`[D, N, mem_dim]`."""
        cells = (self.config.image_size // 16) ** 2
        return self.arrays.zeros((self.depth, cells, self.config.mem_dim), jnp.dtype(self.config.compute_dtype))

    @property
    def first_prompted(self) -> int:
        """The lowest prompted slice, from which the object is propagated."""
        return min(self.prompts)

    @property
    def last_prompted(self) -> int:
        """The highest prompted slice."""
        return max(self.prompts)

    @property
    def confidence(self) -> np.ndarray:
        """The confidence of the memory of each slice, float32 `[D]`."""
        # `memory_confidence` on the host: JAX would compile a program for each depth.
        confidence: np.ndarray = self.predicted_iou * expit(self.object_score_logits)
        return confidence

    def has_prompted_result(self, index: int) -> bool:
        """Return whether slice `index` is prompted and has a result."""
        return index in self.segmented or index in self.new_results

    def logits(self, index: int) -> np.ndarray:
        """Return the latest logits of slice `index`, float32 `[S/4, S/4]`."""
        new = self.new_results.get(index)
        return np.asarray(new.mask_logits) if new else self.mask_logits[index]

    def results(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mask logits `[D, S/4, S/4]`, object score logits `[D]` and predicted IoU `[D]` of all slices."""
        return self.mask_logits, self.object_score_logits, self.predicted_iou

    def commit(self) -> None:
        """Store the results of newly prompted slices, so that propagation and later prompts see their memories."""
        for index, result in self.new_results.items():
            self.store(index, SliceResult(*(x[None] for x in result)), 0)
            self.segmented.add(index)
        self.new_results.clear()

    def store(self, index: int, result: SliceResult, row: int) -> None:
        """Store row `row` of host results `[R, ...]` as the result of slice `index`."""
        self.mask_logits[index] = result.mask_logits[row]
        self.object_score_logits[index] = result.object_score_logits[row]
        self.predicted_iou[index] = result.predicted_iou[row]
        self.memory[index] = result.memory[row]
        self.pointer[index] = result.pointer[row]

    def release(self) -> None:
        """Take the arrays that are in files out of memory, between two blocks of slices."""
        release(self.mask_logits, self.memory)


def load_bank(objects: list[ObjectState], prompted: int, past: list[tuple[int, int]] | None) -> MemoryBank:
    """Copy memories from the host into a bank with one row per object.

    Args:
        objects: one per row.
        prompted: P, room for prompted slices.
        past: (slice, direction) per row; the recent memories of the row belong to the slices before this
            slice in this direction. None leaves the recent memories empty.
    """
    config = objects[0].config
    rule = memory_rule(config.memory_selection)
    rows, cells = len(objects), (config.image_size // 16) ** 2
    sizes = ring_sizes(config)
    dtype = objects[0].memory.dtype
    prompted_memory = np.zeros((rows, prompted, cells, config.mem_dim), dtype)
    prompted_pointer = np.zeros((rows, prompted, config.d_model), dtype)
    prompted_slice = np.full((rows, prompted), EMPTY, np.int32)
    memory = np.zeros((rows, sizes.memories, cells, config.mem_dim), dtype)
    memory_slice = np.full((rows, sizes.memories), EMPTY, np.int32)
    memory_score = np.zeros((rows, sizes.memories), np.float32)
    pointer = np.zeros((rows, sizes.pointers, config.d_model), dtype)
    pointer_slice = np.full((rows, sizes.pointers), EMPTY, np.int32)
    for row, state in enumerate(objects):
        for slot, index in enumerate(sorted(state.segmented)):
            prompted_memory[row, slot] = state.memory[index]
            prompted_pointer[row, slot] = state.pointer[index]
            prompted_slice[row, slot] = index
        if past is None or not rule.bounded:
            continue
        index, direction = past[row]
        confidence = state.confidence if rule.ranked else np.zeros(state.depth, np.float32)
        for other in _remembered_slices(state, index, direction):
            slot = ring_slot(other, sizes.pointers)
            pointer[row, slot], pointer_slice[row, slot] = state.pointer[other], other
            if memory_in_reach(slice_offset(index, other, direction), config):
                slot = ring_slot(other, sizes.memories)
                memory[row, slot], memory_slice[row, slot] = state.memory[other], other
                memory_score[row, slot] = confidence[other]
    bank = MemoryBank(
        _on_device(prompted_memory),
        _on_device(prompted_pointer),
        _on_device(prompted_slice),
        RecentMemories(
            _on_device(memory),
            _on_device(memory_slice),
            _on_device(pointer),
            _on_device(pointer_slice),
            _on_device(memory_score) if rule.ranked else None,
            config.memory_selection,
        ),
    )
    return bank if past is None or rule.bounded else _remember_one_by_one(bank, objects, past)


def _on_device(array: np.ndarray) -> jax.Array:
    """Return a device array, without a compiled program, which `jnp.asarray` has for each shape."""
    uploaded: jax.Array = jax.device_put(array)
    return uploaded


def _remembered_slices(state: ObjectState, index: int, direction: int) -> list[int]:
    """Return the propagated slices that a bank may hold before slice `index`, nearest first."""
    others = earlier_slices(index, direction, state.depth, state.config)
    return [other for other in others if other not in state.segmented and state.direction[other]]


def _remember_one_by_one(bank: MemoryBank, objects: list[ObjectState], past: list[tuple[int, int]]) -> MemoryBank:
    """Store the past of each row in its bank, farthest slice first, because an unbounded rule depends on the order."""
    rows = [_remembered_slices(state, *own)[::-1] for state, own in zip(objects, past, strict=True)]
    confidence = [state.confidence for state in objects]
    for step in range(max(map(len, rows))):
        write = np.array([step < len(slices) for slices in rows])
        index = np.array([slices[step] if step < len(slices) else 0 for slices in rows], np.int32)
        stored = zip(objects, confidence, index, strict=True)
        memory, pointer, own_confidence = zip(
            *((state.memory[other], state.pointer[other], of[other]) for state, of, other in stored), strict=True
        )
        bank = remember_slice(
            bank, index, write, np.stack(memory), np.stack(pointer), np.array(own_confidence, np.float32)
        )
    return bank

"""What a session knows of each object: prompts, prompted slices, and the results of the slices walked so far.

Host arrays for the whole volume; the fixed-size bank on the device is filled from them, by slice index.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field

import jax.numpy as jnp
import numpy as np

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.inference.compiled_steps import SliceResult
from sam2_3dmed_jax.inference.host_arrays import HostArrays
from sam2_3dmed_jax.prompts.prompt import Prompt, power_of_two
from sam2_3dmed_jax.sam2.memory_bank import EMPTY, MemoryBank, Recent


@dataclass
class Track:
    """One object. Slices in `prompts` are prompted; `direction` is 0 for slices never walked."""

    config: Sam2Config
    depth: int
    arrays: InitVar[HostArrays]
    prompts: dict[int, Prompt] = field(default_factory=dict)
    pending: list[int] = field(default_factory=list)  # slices whose prompts have not been segmented yet

    def __post_init__(self, arrays: HostArrays) -> None:
        """Allocate what a volume of this depth needs."""
        side = self.config.image_size // 4
        cells = (self.config.image_size // 16) ** 2
        dtype = jnp.dtype(self.config.compute_dtype)
        self.mask_logits = arrays.zeros((self.depth, side, side), np.float32)
        self.object_score_logits = np.zeros(self.depth, np.float32)
        self.memory = arrays.zeros((self.depth, cells, self.config.mem_dim), dtype)
        self.pointer = np.zeros((self.depth, self.config.d_model), dtype)
        self.direction = np.zeros(self.depth, np.int32)
        self.segmented: set[int] = set()  # prompted slices with a result

    @property
    def start(self) -> int:
        """The earliest prompted slice, from which the object is tracked."""
        return min(self.prompts)

    @property
    def last(self) -> int:
        """The last prompted slice."""
        return max(self.prompts)

    def store(self, index: int, result: SliceResult, row: int) -> None:
        """Keep row `row` of a result of single slices (host arrays)."""
        self.mask_logits[index] = result.mask_logits[row]
        self.object_score_logits[index] = result.object_score_logits[row]
        self.memory[index] = result.memory[row]
        self.pointer[index] = result.pointer[row]


def prompted_capacity(tracks: list[Track]) -> int:
    """P: room for the prompted slices of the object that has most, a power of two."""
    return power_of_two(max(len(track.segmented) for track in tracks))


def load_bank(tracks: list[Track], prompted: int, past: list[tuple[int, int]] | None) -> MemoryBank:
    """A bank with one row a track, from host memory.

    Args:
        tracks: one a row.
        prompted: P.
        past: for each row (slice, direction): its recent memories are those walked before that slice in that
            direction, where there are any; None leaves the recent past empty.
    """
    config = tracks[0].config
    rows, cells = len(tracks), (config.image_size // 16) ** 2
    memories, pointers = config.num_maskmem - 1, config.max_obj_ptrs - 1
    dtype = tracks[0].memory.dtype
    prompted_memory = np.zeros((rows, prompted, cells, config.mem_dim), dtype)
    prompted_pointer = np.zeros((rows, prompted, config.d_model), dtype)
    prompted_slice = np.full((rows, prompted), EMPTY, np.int32)
    memory = np.zeros((rows, memories, cells, config.mem_dim), dtype)
    memory_slice = np.full((rows, memories), EMPTY, np.int32)
    pointer = np.zeros((rows, pointers, config.d_model), dtype)
    pointer_slice = np.full((rows, pointers), EMPTY, np.int32)
    for row, track in enumerate(tracks):
        for slot, index in enumerate(sorted(track.segmented)):
            prompted_memory[row, slot] = track.memory[index]
            prompted_pointer[row, slot] = track.pointer[index]
            prompted_slice[row, slot] = index
        if past is None:
            continue
        index, direction = past[row]
        for offset in range(1, pointers + 1):
            other = index - offset * direction
            if not 0 <= other < track.depth or other in track.segmented or not track.direction[other]:
                continue
            pointer[row, other % pointers], pointer_slice[row, other % pointers] = track.pointer[other], other
            if offset <= memories:
                memory[row, other % memories], memory_slice[row, other % memories] = track.memory[other], other
    recent = Recent(jnp.asarray(memory), jnp.asarray(memory_slice), jnp.asarray(pointer), jnp.asarray(pointer_slice))
    return MemoryBank(jnp.asarray(prompted_memory), jnp.asarray(prompted_pointer), jnp.asarray(prompted_slice), recent)

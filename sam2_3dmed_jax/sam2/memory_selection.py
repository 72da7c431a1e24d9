"""Memory selection: one table of rules which memories a bank keeps and which of them a slice sees.

`recent` is SAM 2's rule. `confident` is ours. `self-sorting` follows Medical SAM 2 (Zhu et al. 2024, arXiv
2408.00874v2, equations 2 to 5), without the random draws of its resampling. docs/explanation/memory-selection.md lists
what is theirs and what is ours. Object pointers always follow SAM 2's rule, and so do prompted slices.

Slice indices may be Python integers or arrays, so that the host and the compiled functions share the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sam2_3dmed_jax.config import MemorySelection, Sam2Config
from sam2_3dmed_jax.errors import UserError

EMPTY = -(1 << 20)  # the slice index of an empty slot; it is out of reach of every slice
ADMITTED_CONFIDENCE = 0.5  # of `self-sorting`: c_thresh of equation 2, whose value the paper does not state

Index = TypeVar("Index", int, jax.Array)


class RingSizes(NamedTuple):
    """The number of unprompted slices that an object remembers."""

    memories: int  # spatial memories
    pointers: int  # object pointers


class MemorySlots(NamedTuple):
    """The spatial memories of unprompted slices of K objects, in S slots."""

    memory: jax.Array  # [K, S, N, mem_dim]
    slice_index: jax.Array  # int32 [K, S]; EMPTY in empty slots
    score: jax.Array | None  # float32 [K, S], by which a slice chooses memories; None: it sees them all


class NewMemory(NamedTuple):
    """The spatial memory of one more slice of K objects."""

    slice_index: jax.Array  # int32 [K]
    write: jax.Array  # bool [K]: False leaves the memories of the object unchanged
    memory: jax.Array  # [K, N, mem_dim]
    confidence: jax.Array | None  # float32 [K], see `memory_confidence`


class Placement(NamedTuple):
    """Where a new memory goes."""

    slot: jax.Array  # int32 [K]
    write: jax.Array  # bool [K]: False if the memory is not kept
    score: jax.Array | None  # float32 [K, S], of all slots afterwards


class SeenMemories(NamedTuple):
    """The n memories that a slice attends to."""

    memory: jax.Array  # [K, n, N, mem_dim]
    age: jax.Array  # int32, broadcastable to [K, n], from 0: the row of the temporal encoding
    valid: jax.Array  # bool [K, n]


@dataclass(frozen=True)
class MemoryRule:
    """One rule.

    Attributes:
        slots: S, the number of memories that are kept, of an architecture.
        bounded: memories are in a ring by slice index, and a slice sees no memory further back than S slices.
        ranked: a slice sees the `num_maskmem - 1` memories with the highest score; otherwise it sees all in reach.
        place: chooses the slot of a new memory.
    """

    slots: Callable[[Sam2Config], int]
    bounded: bool
    ranked: bool
    place: Callable[[MemorySlots, NewMemory], Placement]


def ring_slot(index: Index, size: int) -> Index:
    """Return the slot of slice `index` in a ring of `size` slots."""
    return index % size


def slice_offset(index: Index, other: Index, direction: Index) -> Index:
    """Return how many slices before `index` slice `other` is, in the direction of propagation."""
    return (index - other) * direction


def place_in_ring(slots: MemorySlots, new: NewMemory) -> Placement:
    """Replace the oldest memory."""
    return Placement(ring_slot(new.slice_index, slots.memory.shape[1]), new.write, None)


def place_in_ring_with_confidence(slots: MemorySlots, new: NewMemory) -> Placement:
    """Replace the oldest memory, and store the confidence of the new one as its score."""
    assert slots.score is not None and new.confidence is not None
    rows, slot = jnp.arange(len(new.slice_index)), ring_slot(new.slice_index, slots.memory.shape[1])
    score = slots.score.at[rows, slot].set(jnp.where(new.write, new.confidence, slots.score[rows, slot]))
    return Placement(slot, new.write, score)


def place_by_dissimilarity(slots: MemorySlots, new: NewMemory) -> Placement:
    """Keep the most dissimilar memories (equations 2 and 3), and score all by their similarity to the new one.

    The bank and the new memory are the candidates. Of S + 1 candidates, the one with the lowest total dissimilarity
    `sum_j (1 - sim(E_i, E_j))` is dropped, where `sim` is the cosine over all cells and channels. A new memory whose
    confidence is below `ADMITTED_CONFIDENCE` is not a candidate, but the scores are similarities to it all the same:
    they replace the similarities to the next slice in the resampling (equation 4).
    """
    assert slots.score is not None and new.confidence is not None
    rows, size = jnp.arange(len(new.slice_index)), slots.memory.shape[1]
    filled = slots.slice_index != EMPTY
    kept, latest = _unit_vectors(slots.memory), _unit_vectors(new.memory)
    similarity = jnp.einsum("ksx,ktx->kst", kept, kept, precision=lax.Precision.HIGHEST)
    to_latest = jnp.einsum("ksx,kx->ks", kept, latest, precision=lax.Precision.HIGHEST)

    others = filled[:, None, :] & ~jnp.eye(size, dtype=bool)[None]
    dissimilarity = jnp.where(others, 1 - similarity, 0).sum(2) + (1 - to_latest)  # [K, S], if all slots are filled
    of_latest = jnp.where(filled, 1 - to_latest, 0).sum(1)
    dropped = jnp.argmin(jnp.concatenate([dissimilarity, of_latest[:, None]], axis=1), axis=1)
    slot = jnp.where(filled.all(1), dropped, jnp.argmin(filled, axis=1)).astype(jnp.int32)
    stored = new.write & (new.confidence >= ADMITTED_CONFIDENCE) & (slot < size)
    slot = jnp.minimum(slot, size - 1)
    score = jnp.where(new.write[:, None], to_latest, slots.score)
    return Placement(slot, stored, score.at[rows, slot].set(jnp.where(stored, 1.0, score[rows, slot])))


def _unit_vectors(memory: jax.Array) -> jax.Array:
    """Return memories `[..., N, mem_dim]` as float32 vectors `[..., N x mem_dim]` of length 1; zero stays zero."""
    vectors = lax.stop_gradient(memory).astype(jnp.float32).reshape(*memory.shape[:-2], -1)
    length = jnp.sqrt(jnp.square(vectors).sum(-1, keepdims=True))
    return vectors / jnp.maximum(length, np.finfo(np.float32).tiny)


def _as_many_as_seen(config: Sam2Config) -> int:
    return config.num_maskmem - 1


def _as_many_as_pointers(config: Sam2Config) -> int:
    return config.max_obj_ptrs - 1


MEMORY_RULES: dict[MemorySelection, MemoryRule] = {
    "recent": MemoryRule(_as_many_as_seen, bounded=True, ranked=False, place=place_in_ring),
    "confident": MemoryRule(_as_many_as_pointers, bounded=True, ranked=True, place=place_in_ring_with_confidence),
    "self-sorting": MemoryRule(_as_many_as_pointers, bounded=False, ranked=True, place=place_by_dissimilarity),
}


def memory_rule(name: MemorySelection) -> MemoryRule:
    """Return a rule by name.

    Raises:
        UserError: it does not exist.
    """
    if name not in MEMORY_RULES:
        raise UserError(f"model.memory_selection: '{name}' does not exist; choose one of {', '.join(MEMORY_RULES)}")
    return MEMORY_RULES[name]


def memory_confidence(predicted_iou: Any, object_score_logits: Any) -> jax.Array:
    """Return the confidence of memories: predicted IoU times the probability that the object is on the slice.

    Args:
        predicted_iou: float32 `[K]`, in [0, 1].
        object_score_logits: float32 `[K]`.

    Returns:
        float32 `[K]`, in [0, 1], without a gradient.
    """
    confidence: jax.Array = lax.stop_gradient(predicted_iou * jax.nn.sigmoid(object_score_logits))
    return confidence


def ring_sizes(config: Sam2Config, max_recent: int | None = None) -> RingSizes:
    """Return the numbers of slots of a model; `max_recent` bounds them if propagation never looks back further."""
    sizes = RingSizes(memory_rule(config.memory_selection).slots(config), _as_many_as_pointers(config))
    return sizes if max_recent is None else RingSizes(*(min(size, max_recent) for size in sizes))


def memory_in_reach(offset: Any, config: Sam2Config) -> Any:
    """Return whether a slice may see the spatial memory of the unprompted slice at `offset`, under a bounded rule."""
    return (offset >= 1) & (offset < memory_rule(config.memory_selection).slots(config) + 1)


def pointer_in_reach(offset: Any, reach: Any) -> Any:
    """Return whether a slice sees the pointer of the unprompted slice at `offset`: 1 to `reach` (`pointer_reach`)."""
    return (offset >= 1) & (offset <= reach)


def pointer_reach(depth: jax.Array | int, config: Sam2Config) -> jax.Array:
    """Return how many slices back pointers are seen in a volume of `depth` slices: `min(depth, max_obj_ptrs) - 1`."""
    return jnp.minimum(depth, config.max_obj_ptrs) - 1


def earlier_slices(index: int, direction: int, depth: int, config: Sam2Config) -> list[int]:
    """Return the slices of a volume that a bank may hold before slice `index`, nearest first.

    These are the slices of the rings, or all slices before `index` if the rule is not bounded.
    """
    rule = memory_rule(config.memory_selection)
    reach = max(ring_sizes(config)) if rule.bounded else depth
    return [other for offset in range(1, reach + 1) if 0 <= (other := index - offset * direction) < depth]


def seen_memories(slots: MemorySlots, offset: jax.Array, config: Sam2Config) -> SeenMemories:
    """Return the memories that a slice attends to.

    `recent` sees every slot in reach, and a memory at offset o has age o - 1. Other rules see the `num_maskmem - 1`
    memories with the highest score, of equal ones the nearer, and their ages are their ranks from the nearest on.

    Args:
        slots: the memories of K objects.
        offset: int32 `[K, S]`, how many slices before the current slice each memory is (`slice_offset`).
        config: the architecture.
    """
    rule = memory_rule(config.memory_selection)
    assert rule.ranked == (slots.score is not None)  # the bank was made for this architecture
    if slots.score is None:
        age = jnp.clip(offset - 1, 0, config.num_maskmem - 2)
        return SeenMemories(slots.memory, age, memory_in_reach(offset, config))
    in_reach = memory_in_reach(offset, config) if rule.bounded else offset >= 1
    eligible = in_reach & (slots.slice_index != EMPTY)
    count = min(config.num_maskmem - 1, offset.shape[1])
    by_age = jnp.argsort(jnp.where(eligible, offset, np.iinfo(np.int32).max), axis=1)
    score = jnp.take_along_axis(jnp.where(eligible, slots.score, -jnp.inf), by_age, axis=1)
    chosen = jnp.take_along_axis(by_age, jnp.sort(lax.top_k(score, count)[1], axis=1), axis=1)
    return SeenMemories(
        memory=jnp.take_along_axis(slots.memory, chosen[:, :, None, None], axis=1),
        age=jnp.arange(count)[None],
        valid=jnp.take_along_axis(eligible, chosen, axis=1),
    )

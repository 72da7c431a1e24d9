"""Memory selection: which slices a bank keeps and which of them a slice sees, by hand-computed examples."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.build import abstract_model
from sam2_3dmed_jax.sam2 import memory_selection
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank
from sam2_3dmed_jax.sam2.memory_selection import (
    EMPTY,
    MEMORY_RULES,
    MemorySlots,
    NewMemory,
    earlier_slices,
    memory_confidence,
    memory_in_reach,
    pointer_in_reach,
    pointer_reach,
    ring_sizes,
    ring_slot,
    seen_memories,
    slice_offset,
)
from sam2_3dmed_jax.sam2.presets import preset_config

CONFIG = preset_config("sam2.1_hiera_tiny")
# A slice sees two of the four memories that are kept.
FEW = replace(CONFIG, num_maskmem=3, max_obj_ptrs=5)


@pytest.mark.parametrize(
    ("index", "direction", "expected"),
    [(20, 1, range(19, 4, -1)), (3, 1, (2, 1, 0)), (3, -1, range(4, 19)), (37, -1, (38, 39)), (0, 1, ())],
)
def test_the_rings_hold_fifteen_slices_before_a_slice_as_far_as_the_volume_reaches(index, direction, expected):
    assert earlier_slices(index, direction, 40, CONFIG) == list(expected)


def test_earlier_slices_have_different_slots():
    slices = earlier_slices(30, 1, 40, CONFIG)
    sizes = ring_sizes(CONFIG)
    assert sizes == (6, 15)
    assert len({ring_slot(index, sizes.pointers) for index in slices}) == 15
    assert len({ring_slot(index, sizes.memories) for index in slices[:6]}) == 6


@pytest.mark.parametrize("direction", [1, -1])
def test_a_slice_sees_six_memories_and_the_pointers_of_a_volume_of_up_to_sixteen_slices(direction):
    others = np.arange(41)
    offsets = slice_offset(20, others, direction)
    before = [20 - direction * offset for offset in range(1, 16)]
    assert set(others[memory_in_reach(offsets, CONFIG)]) == set(before[:6])
    for depth, reach in ((9, 8), (16, 15), (100, 15)):
        assert pointer_reach(depth, CONFIG) == reach
        assert set(others[pointer_in_reach(offsets, reach)]) == set(before[:reach])


def test_a_bound_on_how_far_propagation_looks_back_shortens_the_rings():
    assert ring_sizes(CONFIG, 4) == (4, 4)
    assert ring_sizes(CONFIG, 10) == (6, 10)


def slots(indices, scores, memories=None):
    """Memories of one object; by default, the memory of a slice is its index."""
    memories = np.asarray([[[float(index)]] for index in indices] if memories is None else memories, np.float32)
    scores = None if scores is None else jnp.asarray([scores], jnp.float32)
    return MemorySlots(jnp.asarray(memories[None]), jnp.asarray([indices], jnp.int32), scores)


def seen(indices, scores, rule, index=9, direction=1):
    """The slices that slice `index` sees, with the ages whose temporal encoding they take."""
    config, kept = replace(FEW, memory_selection=rule), slots(indices, scores)
    memory, age, valid = seen_memories(kept, slice_offset(index, kept.slice_index, direction), config)
    age = np.broadcast_to(age, valid.shape)
    return {int(m.item()): int(a) for m, a, v in zip(memory[0], age[0], valid[0], strict=True) if v}


def test_recent_gives_a_memory_its_offset_as_its_age_and_leaves_gaps():
    assert seen([8, 7], None, "recent") == {8: 0, 7: 1}
    assert seen([4, 7], None, "recent") == {7: 1}
    assert seen([EMPTY, 10], None, "recent", index=9, direction=-1) == {10: 0}


@pytest.mark.parametrize("rule", ["confident", "self-sorting"])
def test_the_best_memories_are_seen_and_their_ages_are_their_ranks_from_the_nearest(rule):
    assert seen([8, 5, 6, 7], [0.3, 0.9, 0.2, 0.8], rule) == {7: 0, 5: 1}
    assert seen([12, 13, 10, 11], [0.9, 0.1, 0.2, 0.8], rule, direction=-1) == {11: 0, 12: 1}


@pytest.mark.parametrize("rule", ["confident", "self-sorting"])
def test_the_nearer_of_equally_good_memories_is_seen_whatever_its_slot(rule):
    assert seen([8, 5, 6, 7], [0.5] * 4, rule) == seen([6, 7, 8, 5], [0.5] * 4, rule) == {8: 0, 7: 1}


@pytest.mark.parametrize("rule", ["confident", "self-sorting"])
def test_empty_slots_and_slices_ahead_are_never_seen(rule):
    assert seen([EMPTY, 9, 10, 7], [1.0, 1.0, 1.0, 0.1], rule) == {7: 0}
    assert seen([EMPTY] * 4, [1.0] * 4, rule, direction=-1) == {}


def test_confident_forgets_slices_beyond_its_window_and_self_sorting_does_not():
    assert seen([8, 4], [0.1, 0.9], "confident") == {8: 0}
    assert seen([8, 4], [0.1, 0.9], "self-sorting") == {8: 0, 4: 1}


def test_the_confidence_is_the_predicted_iou_times_the_probability_of_the_object():
    confidence = memory_confidence(jnp.array([0.8, 0.8, 0.5]), jnp.array([0.0, 100.0, np.log(3.0)]))
    np.testing.assert_allclose(confidence, [0.4, 0.8, 0.375], rtol=1e-6)  # rounding of float32


def place(rule, indices, scores, new_slice, memories, new_memory, confidence, write=True):
    new = NewMemory(
        jnp.array([new_slice]), jnp.array([write]), jnp.asarray([[new_memory]], jnp.float32), jnp.array([confidence])
    )
    memories = [[memory] for memory in memories]
    slot, kept, score = MEMORY_RULES[rule].place(slots(indices, scores, memories), new)
    return (int(slot[0]) if kept[0] else None), np.asarray(score[0], float).round(5).tolist()


def test_confident_replaces_the_oldest_memory_and_stores_the_confidence_as_its_score():
    stored = ([4, 5, 6, 7], [0.1, 0.2, 0.3, 0.4], 8, [[1, 0]] * 4, [1, 0], 0.75)
    assert place("confident", *stored) == (0, [0.75, 0.2, 0.3, 0.4])
    assert place("confident", *stored, write=False) == (None, [0.1, 0.2, 0.3, 0.4])


A, B, C = [1, 0], [0.96, 0.28], [0, 2]  # the cosine does not depend on length: cos(A, B) 0.96, (B, C) 0.28, (A, C) 0


def test_self_sorting_drops_the_memory_with_the_lowest_total_dissimilarity():
    # D = [-0.6, -0.8] has the cosines -0.6, -0.8 and -0.8 with A, B and C.
    # Totals: A 0.04 + 1 + 1.6 = 2.64, B 0.04 + 0.72 + 1.8 = 2.56, C 1 + 0.72 + 1.8 = 3.52, D 1.6 + 1.8 + 1.8 = 5.2.
    kept = place("self-sorting", [1, 2, 3], [0.0] * 3, 4, [A, B, C], [-0.6, -0.8], 0.9)
    assert kept == (1, [-0.6, 1.0, -0.8])


def test_self_sorting_drops_a_new_memory_that_is_most_like_the_others_but_scores_by_it():
    # N = [0.8, 0.6] has the cosines 0.8, -0.96 and 0.6 with A, E = [-0.6, -0.8] and C.
    # Totals: A 1.6 + 1 + 0.2 = 2.8, E 1.6 + 1.8 + 1.96 = 5.36, C 1 + 1.8 + 0.4 = 3.2, N 0.2 + 1.96 + 0.4 = 2.56.
    kept = place("self-sorting", [1, 2, 3], [0.0] * 3, 4, [A, [-0.6, -0.8], C], [0.8, 0.6], 0.9)
    assert kept == (None, [0.8, -0.96, 0.6])


def test_self_sorting_fills_empty_slots_first_and_admits_only_confident_memories():
    stored = ([1, EMPTY, 3, EMPTY], [0.0] * 4, 4, [A, [0, 0], C, [0, 0]], [1, 0])
    assert place("self-sorting", *stored, 0.5) == (1, [1.0, 1.0, 0.0, 0.0])
    assert place("self-sorting", *stored, 0.49) == (None, [1.0, 0.0, 0.0, 0.0])
    assert place("self-sorting", *stored, 0.9, write=False) == (None, [0.0] * 4)


def test_a_rule_that_does_not_exist_is_refused_with_the_choices():
    with pytest.raises(UserError, match="'best' does not exist; choose one of recent, confident, self-sorting"):
        abstract_model(ModelConfig("nano", 64, memory_selection="best"))


def primitives_of_a_slice(rule):
    """Primitives of the program that reads the memories of a slice and stores its own."""
    model = replace(preset_config("nano", 64), memory_selection=rule)

    def step(bank, confidence):
        index = direction = jnp.ones(2, jnp.int32)
        tokens = memory_selection.seen_memories(
            bank.recent.memory_slots, slice_offset(index[:, None], bank.recent.memory_slice, direction[:, None]), model
        )
        new = jnp.zeros((2, 16, 16)), jnp.zeros((2, 64)), confidence
        return tokens, bank.write_recent(index, index > 0, *new)

    bank = MemoryBank.empty(model, 2, 1)
    confidence = jnp.zeros(2) if bank.recent.memory_score is not None else None
    return {equation.primitive.name for equation in jax.make_jaxpr(step)(bank, confidence).jaxpr.eqns}


def test_the_program_of_recent_has_no_part_of_the_other_rules():
    ranking = {"top_k", "sort", "dot_general", "argmin"}
    assert not primitives_of_a_slice("recent") & ranking
    assert "top_k" in primitives_of_a_slice("confident")


def test_a_rule_is_one_entry_of_the_table(monkeypatch):
    only_three = replace(MEMORY_RULES["recent"], slots=lambda config: 3)
    monkeypatch.setitem(memory_selection.MEMORY_RULES, "three", only_three)
    graphdef, _ = abstract_model(ModelConfig("nano", 64, memory_selection="three"))
    assert graphdef is not None
    bank = MemoryBank.empty(replace(FEW, memory_selection="three"), 1, 1)
    assert bank.recent.memory.shape[1] == 3
    assert seen([8, 7, 6], None, "three") == {8: 0, 7: 1, 6: 1}  # FEW has a temporal encoding for two ages

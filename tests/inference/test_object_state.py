"""Memory banks that the host fills from the results of earlier passes, under each memory selection."""

from dataclasses import replace

import numpy as np
import pytest

from sam2_3dmed_jax.inference.host_arrays import HostArrays
from sam2_3dmed_jax.inference.object_state import ObjectState, load_bank
from sam2_3dmed_jax.sam2.memory_selection import EMPTY
from sam2_3dmed_jax.sam2.presets import preset_config

DEPTH, PROMPTED = 40, 12


def propagated(rule, prompted=(PROMPTED,)):
    """An object with results on all slices, whose memories have random directions and whose confidences grow."""
    config = replace(preset_config("nano", 64), memory_selection=rule)
    state = ObjectState(config, DEPTH, HostArrays())
    state.memory[:] = np.random.default_rng(0).normal(size=state.memory.shape)
    state.pointer[:] = np.arange(DEPTH)[:, None]
    state.predicted_iou[:] = np.linspace(0.3, 0.99, DEPTH)
    state.object_score_logits[:] = 100.0  # surely present
    state.direction[:] = 1
    state.segmented = set(prompted)
    return state


def kept(bank, row=0):
    """Slices of the memories and of the pointers, and the score of each memory, of one row."""
    recent = bank.recent
    slices = np.asarray(recent.memory_slice[row])
    scores = [0.0] * len(slices) if recent.memory_score is None else np.asarray(recent.memory_score[row], float)
    memories = {int(index): float(score) for index, score in zip(slices, scores, strict=True) if index != EMPTY}
    pointers = {int(index) for index in np.asarray(recent.pointer_slice[row]) if index != EMPTY}
    return memories, pointers


@pytest.mark.parametrize(("rule", "memories"), [("recent", 6), ("confident", 15)])
def test_the_rings_hold_the_slices_before_the_start_without_prompted_ones(rule, memories):
    state = propagated(rule, prompted=(PROMPTED, PROMPTED + 2))
    held, pointers = kept(load_bank([state], 2, [(PROMPTED, -1)]))
    window = set(range(PROMPTED + 1, PROMPTED + 16)) - {PROMPTED + 2}
    assert pointers == window
    assert held.keys() == {index for index in window if index <= PROMPTED + memories}
    if rule == "confident":
        assert held == {index: pytest.approx(state.predicted_iou[index]) for index in held}


def test_self_sorting_takes_confident_slices_of_the_whole_pass_and_scores_them_by_the_nearest():
    state = propagated("self-sorting")
    memories, pointers = kept(load_bank([state], 1, [(PROMPTED, -1)]))
    assert pointers == set(range(PROMPTED + 1, PROMPTED + 16))
    assert len(memories) == 15 and max(memories) > PROMPTED + 15
    assert min(state.predicted_iou[index] for index in memories) >= 0.5
    nearest = state.memory[PROMPTED + 1].ravel()
    for index, score in memories.items():
        other = state.memory[index].ravel()
        cosine = nearest @ other / np.linalg.norm(nearest) / np.linalg.norm(other)
        assert score == pytest.approx(cosine, abs=1e-5)  # sums of 256 products in float32


@pytest.mark.parametrize("rule", ["recent", "confident", "self-sorting"])
def test_rows_with_pasts_of_different_length_do_not_mix(rule):
    states = [propagated(rule), propagated(rule)]
    alone = [kept(load_bank([state], 1, [past])) for state, past in zip(states, [(3, 1), (20, 1)], strict=True)]
    together = load_bank(states, 1, [(3, 1), (20, 1)])
    for row, (memories, pointers) in enumerate(alone):
        assert kept(together, row) == ({index: pytest.approx(s, abs=1e-6) for index, s in memories.items()}, pointers)


@pytest.mark.parametrize("rule", ["recent", "confident", "self-sorting"])
def test_a_bank_without_a_past_is_empty(rule):
    assert kept(load_bank([propagated(rule)], 1, None)) == ({}, set())

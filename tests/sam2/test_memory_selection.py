"""The rule of which recent slices an object sees: ring sizes, slots, offsets and reach."""

import numpy as np
import pytest

from sam2_3dmed_jax.sam2.memory_selection import (
    earlier_slices,
    memory_in_reach,
    pointer_in_reach,
    pointer_reach,
    ring_sizes,
    ring_slot,
    slice_offset,
)
from sam2_3dmed_jax.sam2.presets import preset_config

CONFIG = preset_config("sam2.1_hiera_tiny")


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

"""Lengths of blocks of slices: short ones where padding is computed, with the same results."""

import numpy as np
import pytest

from sam2_3dmed_jax import Prompt, VolumePredictor, new_model
from sam2_3dmed_jax.inference import block_lengths, compiled_programs
from sam2_3dmed_jax.inference.block_lengths import BLOCK, blocks_of_path


@pytest.fixture
def computed_padding(monkeypatch):
    """Behave as on a GPU: a step without active rows is computed, and the last blocks are short."""
    monkeypatch.setattr(block_lengths, "padding_is_computed", lambda: True)
    monkeypatch.setattr(compiled_programs, "_is_computed", lambda active: compiled_programs._always(active))


def test_all_blocks_have_one_length_where_padding_costs_nothing():
    assert blocks_of_path(21, BLOCK) == [(0, 16, 16), (16, 21, 16)]
    assert blocks_of_path(6, 4) == [(0, 4, 16), (4, 6, 16)]


def test_blocks_that_are_not_full_are_cut_where_padding_is_computed(computed_padding):
    assert blocks_of_path(21, BLOCK) == [(0, 16, 16), (16, 20, 4), (20, 21, 4)]
    assert blocks_of_path(29, BLOCK) == [(0, 16, 16), (16, 29, 16)]
    assert blocks_of_path(6, 4) == [(0, 4, 4), (4, 6, 4)]


@pytest.mark.parametrize("steps", range(1, 50))
def test_blocks_cover_each_step_once_with_less_padding_than_a_short_block(computed_padding, steps):
    blocks = blocks_of_path(steps, BLOCK)
    assert [step for block in blocks for step in range(block.begin, block.end)] == list(range(steps))
    assert sum(block.length for block in blocks) - steps < block_lengths.SHORT_BLOCK


def test_results_do_not_depend_on_the_lengths_of_blocks(request):
    slices = np.random.default_rng(0).normal(size=(9, 64, 64, 3)).astype(np.float32)
    model, prompts = new_model("nano", 64), [Prompt(1, 4, [(30.0, 26.0)], [1])]
    one = VolumePredictor(model).predict(slices, prompts)
    compiled_programs.propagate_block.clear_cache()
    request.addfinalizer(compiled_programs.propagate_block.clear_cache)
    request.getfixturevalue("computed_padding")
    other = VolumePredictor(model).predict(slices, prompts)
    # Two programs of different length sum float32 in different orders.
    np.testing.assert_allclose(other.mask_logits, one.mask_logits, atol=2e-4)
    assert compiled_programs.propagate_block._cache_size() == 1  # of short blocks alone

"""Attention over all keys at once equals plain attention, in one block of queries or in several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax.sam2 import wide_attention
from tests.helpers.attention_operands import operands, plain, results_of, some_valid


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scores", [wide_attention.BLOCK_SCORES, 16 * 3 * 2 * 70])  # one block, and blocks of queries
def test_wide_attention_and_its_gradients_equal_plain_attention(masked, scores):
    q, k, v, gradient = operands(48, 70, 2, 16, 8)
    valid = some_valid(70, valid_in_last_row=1) if masked else None
    results = results_of(wide_attention, q, k, v, valid, gradient, scores=scores)
    for result, expected in zip(results, plain(q, k, v, valid, gradient), strict=True):
        assert result.dtype == expected.dtype
        # float32 sums of 70 numbers of order one, in a different order
        np.testing.assert_allclose(result, expected, atol=2e-6)


def test_a_row_without_valid_keys_is_the_mean_and_has_gradients_of_values_only():
    q, k, v, gradient = operands(48, 70, 1, 16, 8)
    no_valid_key = jnp.zeros((3, 70), bool)
    out, dq, dk, dv = results_of(wide_attention, q, k, v, no_valid_key, gradient)
    np.testing.assert_allclose(out, jnp.broadcast_to(v.mean(1, keepdims=True), out.shape), atol=1e-6)
    np.testing.assert_array_equal(dq, 0)
    np.testing.assert_array_equal(dk, 0)
    np.testing.assert_allclose(dv, jnp.broadcast_to(gradient.sum(1, keepdims=True) / 70, dv.shape), atol=1e-6)


def test_wide_attention_in_bfloat16_has_the_precision_of_bfloat16():
    exact = operands(48, 70, 1, 16, 8, jnp.bfloat16)
    truth = plain(*(x.astype(jnp.float32) for x in exact[:3]), None, exact[3].astype(jnp.float32))
    for result, expected in zip(results_of(wide_attention, *exact[:3], None, exact[3]), truth, strict=True):
        assert result.dtype == jnp.bfloat16
        # Weights, their gradients and the result have eight bits.
        assert np.linalg.norm(result.astype(np.float32) - expected) < 2**-8 * np.linalg.norm(expected)


def test_a_slice_of_1024_px_meets_its_memories_without_a_loop_or_conditional():
    q, k, v = (
        jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in ((4096, 1, 256), (28736, 1, 256), (28736, 1, 64))
    )
    text = jax.jit(wide_attention.forward).lower(q, k, v, jax.ShapeDtypeStruct((1, 28736), bool)).as_text()
    assert "stablehlo.while" not in text and "stablehlo.case" not in text
    largest = functools.partial(wide_attention._rows_per_block, q, k)
    assert largest(wide_attention.BLOCK_SCORES) == 4096 and largest(wide_attention.BLOCK_SCORES // 2) == 2048

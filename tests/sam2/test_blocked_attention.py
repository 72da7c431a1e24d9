"""Blocked attention equals attention at once, skips masked blocks, and holds only the scores of one block."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.sam2 import attention, blocked_attention
from sam2_3dmed_jax.sam2.memory_attention import MemoryAttention, MemoryTokens
from sam2_3dmed_jax.sam2.parameters import merge, split

SCORES = 16 * 128  # 128 keys meet 16 queries


def operands(n, m, dtype=jnp.float32):
    """Queries, keys, values and a gradient, of three rows and two heads."""
    rng = np.random.default_rng(0)
    shapes = ((3, n, 2, 8), (3, m, 2, 8), (3, m, 2, 4), (3, n, 2, 4))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def in_blocks(q, k, v, valid, gradient):
    out, logsumexp = blocked_attention.forward(q, k, v, valid, SCORES)
    return out, *blocked_attention.backward(q, k, v, valid, out, logsumexp, gradient, SCORES)


def at_once(q, k, v, valid, gradient):
    out, vjp = jax.vjp(lambda q, k, v: attention._attend_at_once(q, k, v, valid), q, k, v)
    return out, *vjp(gradient)


@pytest.mark.parametrize("m", [256, 300, 100])  # whole blocks of keys, a shorter one at the end, and less than one
def test_blocked_attention_and_its_gradients_equal_attention_at_once(m):
    q, k, v, gradient = operands(48, m)
    assert blocked_attention._block_sizes(48, m, SCORES) == (16, min(m, 128))
    for result, expected in zip(in_blocks(q, k, v, None, gradient), at_once(q, k, v, None, gradient), strict=True):
        np.testing.assert_allclose(
            result, expected, atol=4e-6
        )  # float32 sums of 300 numbers of order one, in a different order


def test_masked_keys_and_blocks_skipped_by_some_or_all_rows_have_no_effect():
    q, k, v, gradient = operands(48, 700)
    valid = np.random.default_rng(1).random((3, 700)) < 0.5
    valid[0, :300] = False  # the first two blocks are empty for this row
    valid[:, 384:512] = False  # this block is empty for all rows
    valid = jnp.asarray(valid)
    for result, expected in zip(in_blocks(q, k, v, valid, gradient), at_once(q, k, v, valid, gradient), strict=True):
        np.testing.assert_allclose(result, expected, atol=4e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_per_row_and_head_and_its_gradients_equal_attention_at_once(masked):
    q, k, v, gradient = operands(48, 300)
    valid = jnp.asarray(np.random.default_rng(1).random((3, 300)) < 0.5) if masked else None
    forward = blocked_attention.per_row_and_head(functools.partial(blocked_attention.forward, scores=SCORES))
    backward = blocked_attention.per_row_and_head(functools.partial(blocked_attention.backward, scores=SCORES))
    out, logsumexp = forward(q, k, v, valid)
    results = out, *backward(q, k, v, valid, out, logsumexp, gradient)
    for result, expected in zip(results, at_once(q, k, v, valid, gradient), strict=True):
        np.testing.assert_allclose(result, expected, atol=4e-6)


def test_on_cpu_only_the_scores_of_one_row_and_head_are_held():
    text = jax.jit(attention.attend).lower(*operands(2048, 2048)[:3]).compile().as_text()
    sizes = [math.prod(map(int, shape.split(","))) for shape in re.findall(r"f32\[([\d,]+)\]", text)]
    assert max(sizes) == blocked_attention.BLOCK_SCORES


def test_a_skipped_block_is_not_read():
    q, k, v, gradient = operands(48, 300)
    valid = jnp.broadcast_to(jnp.arange(300) >= 128, (3, 300))
    k, v = (x.at[:, :128].set(jnp.nan) for x in (k, v))
    for x in in_blocks(q, k, v, valid, gradient):
        assert jnp.isfinite(x).all()


def test_blocked_attention_in_bfloat16_has_the_precision_of_bfloat16():
    exact = operands(48, 300, jnp.bfloat16)
    truth = at_once(*(x.astype(jnp.float32) for x in exact[:3]), None, exact[3].astype(jnp.float32))
    for result, expected in zip(in_blocks(*exact[:3], None, exact[3]), truth, strict=True):
        assert result.dtype == jnp.bfloat16
        # Weights, their gradients and the result have eight bits.
        assert np.linalg.norm(result.astype(np.float32) - expected) < 2**-8 * np.linalg.norm(expected)


@pytest.mark.parametrize("gradients", [False, True])
def test_compiled_memory_attention_never_holds_the_scores_of_all_queries_and_keys(gradients):
    side, memories, pointers = 32, 7, 64
    cells, tokens = side * side, memories * side * side + pointers
    graphdef, weights = split(MemoryAttention(Sam2Config(memory_attention_layers=1), dtype=jnp.float32))

    def run(weights, embedding, tokens, position, valid):
        memory = MemoryTokens(tokens, position, valid, pointers)
        return jnp.square(merge(graphdef, weights)(embedding, memory)).sum()

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    compiled = (
        jax.jit(jax.grad(run, (0, 1, 2)) if gradients else run)
        .lower(
            weights,
            array(1, side, side, 256),
            array(1, tokens, 64),
            array(1, tokens, 64),
            array(1, tokens, dtype=jnp.bool),
        )
        .compile()
    )
    shapes = re.findall(r"\b(?:f32|bf16|pred)\[([\d,]+)\]", compiled.as_text())
    largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    assert largest < cells * tokens / 2  # room for the hidden layer of the feed-forward part and for projected keys


@pytest.mark.parametrize(("platform", "halved"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_row_maxima_are_computed_by_halves_only_on_cpu(platform, halved):
    """On other platforms the slices would be copies."""
    scores = jax.ShapeDtypeStruct((2, 256), jnp.float32)
    lowered = jax.jit(blocked_attention._row_maximum).trace(scores).lower(lowering_platforms=(platform,))
    assert ("stablehlo.slice" in lowered.as_text()) == halved

"""Attention in blocks against attention at once, and that what need not be computed or held is not."""

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
def test_attention_in_blocks_equals_attention_at_once_and_so_do_its_gradients(m):
    q, k, v, gradient = operands(48, m)
    assert blocked_attention._sizes(48, m, SCORES) == (16, min(m, 128))
    for got, want in zip(in_blocks(q, k, v, None, gradient), at_once(q, k, v, None, gradient), strict=True):
        np.testing.assert_allclose(got, want, atol=4e-6)  # float32 sums of 300 numbers of order one, in another order


def test_masked_keys_and_blocks_that_some_or_all_rows_skip_count_as_if_they_were_not_there():
    q, k, v, gradient = operands(48, 700)
    valid = np.random.default_rng(1).random((3, 700)) < 0.5
    valid[0, :300] = False  # the first two blocks are empty for this row
    valid[:, 384:512] = False  # and this one for all
    valid = jnp.asarray(valid)
    for got, want in zip(in_blocks(q, k, v, valid, gradient), at_once(q, k, v, valid, gradient), strict=True):
        np.testing.assert_allclose(got, want, atol=4e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_rows_and_heads_one_after_another_equal_all_at_once_and_so_do_their_gradients(masked):
    q, k, v, gradient = operands(48, 300)
    valid = jnp.asarray(np.random.default_rng(1).random((3, 300)) < 0.5) if masked else None
    forward = blocked_attention.one_by_one(functools.partial(blocked_attention.forward, scores=SCORES))
    backward = blocked_attention.one_by_one(functools.partial(blocked_attention.backward, scores=SCORES))
    out, logsumexp = forward(q, k, v, valid)
    found = out, *backward(q, k, v, valid, out, logsumexp, gradient)
    for got, want in zip(found, at_once(q, k, v, valid, gradient), strict=True):
        np.testing.assert_allclose(got, want, atol=4e-6)


def test_on_a_cpu_the_scores_of_a_single_row_and_head_are_held():
    text = jax.jit(attention.attend).lower(*operands(2048, 2048)[:3]).compile().as_text()
    sizes = [math.prod(map(int, shape.split(","))) for shape in re.findall(r"f32\[([\d,]+)\]", text)]
    assert max(sizes) == blocked_attention.SCORES


def test_a_skipped_block_is_not_looked_at():
    q, k, v, gradient = operands(48, 300)
    valid = jnp.broadcast_to(jnp.arange(300) >= 128, (3, 300))
    k, v = (x.at[:, :128].set(jnp.nan) for x in (k, v))
    for x in in_blocks(q, k, v, valid, gradient):
        assert jnp.isfinite(x).all()


def test_in_bfloat16_blocks_are_true_to_bfloat16():
    exact = operands(48, 300, jnp.bfloat16)
    truth = at_once(*(x.astype(jnp.float32) for x in exact[:3]), None, exact[3].astype(jnp.float32))
    for got, want in zip(in_blocks(*exact[:3], None, exact[3]), truth, strict=True):
        assert got.dtype == jnp.bfloat16
        # Eight bits of weights, of their gradients and of the result
        assert np.linalg.norm(got.astype(np.float32) - want) < 2**-8 * np.linalg.norm(want)


@pytest.mark.parametrize("gradients", [False, True])
def test_compiled_memory_attention_holds_no_scores_of_all_queries_and_keys(gradients):
    side, memories, pointers = 32, 7, 64
    cells, tokens = side * side, memories * side * side + pointers
    graphdef, weights = split(MemoryAttention(Sam2Config(memory_attention_layers=1), dtype=jnp.float32))

    def run(weights, embedding, tokens, position, valid):
        memory = MemoryTokens(tokens, position, valid, pointers)
        return jnp.square(merge(graphdef, weights)(embedding, memory)).sum()

    def shape(*of, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(of, dtype)

    compiled = (
        jax.jit(jax.grad(run, (0, 1, 2)) if gradients else run)
        .lower(
            weights,
            shape(1, side, side, 256),
            shape(1, tokens, 64),
            shape(1, tokens, 64),
            shape(1, tokens, dtype=jnp.bool),
        )
        .compile()
    )
    shapes = re.findall(r"\b(?:f32|bf16|pred)\[([\d,]+)\]", compiled.as_text())
    largest = max(math.prod(map(int, found.split(","))) for found in shapes)
    assert largest < cells * tokens / 2  # the hidden layer of the feed-forward part, and projected keys


@pytest.mark.parametrize(("platform", "halved"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_rows_maxima_meet_by_halves_on_cpu_alone(platform, halved):
    """Elsewhere the slices are copies."""
    scores = jax.ShapeDtypeStruct((2, 256), jnp.float32)
    lowered = jax.jit(blocked_attention._row_maximum).trace(scores).lower(lowering_platforms=(platform,))
    assert ("stablehlo.slice" in lowered.as_text()) == halved

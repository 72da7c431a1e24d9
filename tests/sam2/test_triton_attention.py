"""The GPU's attention kernels, interpreted: results and gradients equal plain attention for every kind of shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax.sam2 import triton_attention
from sam2_3dmed_jax.sam2.triton_attention import Block
from sam2_3dmed_jax.sam2.triton_kernels import channel_pieces
from tests.helpers.attention_operands import operands, plain, results_of, some_valid

BLOCK = Block(queries=32, keys=16, warps=4, stages=2)


def interpreted(q, k, v, valid, gradient, splits=1):
    settings = {"capability": (9, 0), "block": BLOCK, "splits": splits, "interpret": True}
    return jax.jit(functools.partial(results_of, triton_attention, **settings))(q, k, v, valid, gradient)


@pytest.mark.parametrize(
    "n, m, heads, d, dv, masked, splits",
    [
        (64, 64, 2, 16, 16, False, 1),  # whole blocks
        (40, 70, 2, 56, 56, True, 1),  # odd lengths, and heads of base_plus
        (40, 70, 1, 72, 72, False, 3),  # heads of large, without a mask
        (33, 90, 1, 96, 96, True, 3),  # heads of tiny and small
        (33, 90, 1, 256, 64, True, 2),  # memory attention
        (8, 20, 1, 32, 16, False, 1),  # fewer tokens than a block
    ],
)
def test_the_kernels_and_their_gradients_equal_plain_attention(n, m, heads, d, dv, masked, splits):
    q, k, v, gradient = operands(n, m, heads, d, dv)
    valid = some_valid(m, valid_in_last_row=1) if masked else None
    results = interpreted(q, k, v, valid, gradient, splits)
    for result, expected in zip(results, plain(q, k, v, valid, gradient), strict=True):
        assert result.dtype == expected.dtype
        # float32 sums of 90 numbers of order one, in a different order
        np.testing.assert_allclose(result, expected, atol=4e-6)


@pytest.mark.parametrize("splits", [1, 3])
def test_the_kernels_in_bfloat16_have_the_precision_of_bfloat16(splits):
    exact = operands(40, 100, 1, 72, 24, jnp.bfloat16)
    valid = some_valid(100, valid_in_last_row=1)
    truth = plain(*(x.astype(jnp.float32) for x in exact[:3]), valid, exact[3].astype(jnp.float32))
    for result, expected in zip(interpreted(*exact[:3], valid, exact[3], splits), truth, strict=True):
        assert result.dtype == jnp.bfloat16
        # Weights, their gradients and the result have eight bits.
        assert np.linalg.norm(result.astype(np.float32) - expected) < 2**-8 * np.linalg.norm(expected)


def test_a_row_without_valid_keys_is_the_mean_and_has_gradients_of_values_only():
    q, k, v, gradient = operands(40, 70, 1, 32, 16)
    valid = some_valid(70)  # the other rows have valid keys
    out, dq, dk, dv = (x[2:] for x in interpreted(q, k, v, valid, gradient, splits=3))
    np.testing.assert_allclose(out, jnp.broadcast_to(v[2:].mean(1, keepdims=True), out.shape), atol=1e-6)
    np.testing.assert_array_equal(dq, 0)
    np.testing.assert_array_equal(dk, 0)
    np.testing.assert_allclose(dv, jnp.broadcast_to(gradient[2:].sum(1, keepdims=True) / 70, dv.shape), atol=1e-6)


def test_a_block_without_valid_keys_is_not_read():
    q, k, v, gradient = operands(40, 70, 1, 16, 16)
    valid = jnp.broadcast_to((jnp.arange(70) < 16) | (jnp.arange(70) >= 48), (3, 70))
    k, v = (x.at[:, 16:48].set(jnp.nan) for x in (k, v))
    for result in interpreted(q, k, v, valid, gradient):
        assert jnp.isfinite(result).all()


@pytest.mark.parametrize(
    ("channels", "pieces"),
    [
        (16, [(0, 16)]),
        (56, [(0, 64)]),
        (64, [(0, 64)]),
        (72, [(0, 64), (64, 16)]),
        (96, [(0, 64), (64, 32)]),
        (256, [(0, 256)]),
    ],
)
def test_channels_are_cut_into_powers_of_two(channels, pieces):
    assert channel_pieces(channels) == pieces


def test_each_gpu_has_blocks_for_each_number_of_channels():
    for gpu in (*triton_attention.GPUS.values(), triton_attention.OTHER_GPU):
        for d, dv in ((16, 16), (72, 72), (256, 64), (256, 256)):
            q, v = jnp.zeros((1, 1, 1, d)), jnp.zeros((1, 1, 1, dv))
            for block in triton_attention._blocks(q, v, gpu):
                # The operands of the loop, in bfloat16, as many times as there are stages.
                assert block.keys * (d + dv) * 2 * block.stages <= gpu.shared_memory_kib << 10


def test_keys_are_split_only_where_the_blocks_of_queries_are_too_few():
    h100 = triton_attention.GPUS[9, 0]
    one_slice, four_objects, windows = (jnp.zeros((b, 1, heads, 1)) for b, heads in ((1, 1), (4, 1), (25, 4)))
    assert triton_attention._splits(one_slice, 32, 449, h100) == 8
    assert triton_attention._splits(four_objects, 32, 449, h100) == 2
    assert triton_attention._splits(windows, 2, 4, h100) == 1
    assert triton_attention._splits(one_slice, 8, 16, h100) == 2  # loops of eight blocks

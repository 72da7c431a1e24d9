"""Flash attention: the interpreted kernels equal plain attention, and the TPU compiler accepts them."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sam2_3dmed_jax.sam2 import attention, blocked_attention, flash_attention
from tests.helpers.attention_operands import operands, plain, results_of, some_valid

BLOCK = (256, 256)  # for 16-bit numbers; 128 for float32


def flash(q, k, v, valid, gradient):
    return results_of(flash_attention, q, k, v, valid, gradient, block=BLOCK, interpret=True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n, m, heads", [(256, 256, 1), (200, 300, 2)])  # whole blocks, and ragged ones
def test_the_kernels_and_their_gradients_equal_plain_attention(n, m, heads, masked):
    q, k, v, gradient = operands(n, m, heads, 32, 16, jnp.float32)
    valid = some_valid(m) if masked else None
    for result, expected in zip(flash(q, k, v, valid, gradient), plain(q, k, v, valid, gradient), strict=True):
        assert result.dtype == expected.dtype
        # float32 sums of 300 numbers of order one, in a different order
        np.testing.assert_allclose(result, expected, atol=4e-6)


def test_the_kernels_in_bfloat16_have_the_precision_of_bfloat16():
    exact = operands(200, 300, 1, 32, 16, jnp.bfloat16)
    valid = some_valid(300)
    truth = plain(*(x.astype(jnp.float32) for x in exact[:3]), valid, exact[3].astype(jnp.float32))
    for result, expected in zip(flash(*exact[:3], valid, exact[3]), truth, strict=True):
        assert result.dtype == jnp.bfloat16
        # Weights, their gradients and the result have eight bits; plain attention has errors of 1.9 to 3.7e-3, too.
        assert np.linalg.norm(result.astype(np.float32) - expected) < 2**-8 * np.linalg.norm(expected)


def test_a_block_without_valid_keys_is_not_read():
    q, k, v, _ = operands(128, 384, 1, 32, 16, jnp.float32)
    empty = jnp.arange(384) // 128 == 1
    valid = jnp.broadcast_to(~empty, (3, 384))
    expected, _ = flash_attention.forward(q, k, v, valid, block=BLOCK, interpret=True)
    v = jnp.where(empty[None, :, None, None], jnp.nan, v)  # NaN times a weight of 0 would be NaN
    result, _ = flash_attention.forward(q, k, v, valid, block=BLOCK, interpret=True)
    np.testing.assert_array_equal(result, expected)


def test_a_row_without_valid_keys_is_the_mean_and_has_gradients_of_values_only():
    q, k, v, gradient = operands(200, 300, 1, 32, 16, jnp.float32)
    out, dq, dk, dv = flash(q, k, v, jnp.zeros((3, 300), bool), gradient)
    np.testing.assert_allclose(out, jnp.broadcast_to(v.mean(1, keepdims=True), out.shape), atol=1e-6)
    np.testing.assert_array_equal(dq, 0)
    np.testing.assert_array_equal(dk, 0)
    np.testing.assert_allclose(dv, jnp.broadcast_to(gradient.sum(1, keepdims=True) / 300, dv.shape), atol=1e-6)


def test_without_a_tpu_no_kernel_is_lowered_and_the_result_is_blocked_attention(monkeypatch):
    monkeypatch.setattr(attention, "MAX_SCORES", 1000)
    q, k, v, gradient = operands(40, 100, 2, 8, 4, jnp.float32)
    valid = some_valid(100)

    @jax.jit
    def ours(q, k, v, valid, gradient):
        out, vjp = jax.vjp(lambda q, k, v: attention.attend(q, k, v, valid), q, k, v)
        return out, *vjp(gradient)

    @jax.jit
    def blocks(q, k, v, valid, gradient):
        forward, backward = map(
            blocked_attention.per_row_and_head, (blocked_attention.forward, blocked_attention.backward)
        )
        out, logsumexp = forward(q, k, v, valid)
        return out, *backward(q, k, v, valid, out, logsumexp, gradient)

    arguments = q, k, v, valid, gradient
    assert "custom_call" not in ours.lower(*arguments).as_text()
    for result, expected in zip(ours(*arguments), blocks(*arguments), strict=True):
        np.testing.assert_array_equal(result, expected)


def test_attention_on_a_mesh_is_differentiable_in_a_checkpointed_scan(monkeypatch):
    monkeypatch.setattr(attention, "MAX_SCORES", 1000)
    q, k, v, _ = operands(40, 100, 2, 8, 8, jnp.float32)
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto), devices=jax.devices()[:1])
    placed = jax.device_put((q, k, v), NamedSharding(mesh, P(("data", "fsdp"))))

    @jax.jit
    def gradients(q, k, v):
        def total(q, k, v):
            step = jax.checkpoint(lambda x, _: (attention.attend(x, k, v), None))
            return jnp.square(jax.lax.scan(step, q, length=3)[0]).sum()

        return jax.grad(total, (0, 1, 2))(q, k, v)

    def total_of_plain_attention(q, k, v):
        for _ in range(3):
            q = attention._attend_at_once(q, k, v, None)
        return jnp.square(q).sum()

    for result, expected in zip(
        gradients(*placed), jax.grad(total_of_plain_attention, (0, 1, 2))(q, k, v), strict=True
    ):
        np.testing.assert_allclose(result, expected, atol=2e-5)  # errors of three successive products


@pytest.fixture(scope="module")
def compiled():
    """Return the output of `compile_for_tpu.py`; a subprocess, because libtpu is configured by the environment."""
    script = Path(__file__).parents[1] / "helpers" / "compile_for_tpu.py"
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def test_memory_attention_at_1024_px_compiles_to_tpu_kernels_and_holds_no_scores(compiled):
    # Self-attention and memory attention, each forward, recomputed by the checkpoint, and backward.
    assert compiled["prediction"]["forward kernels"] == 2
    assert compiled["training"]["forward kernels"] == 4
    assert compiled["training"]["backward kernels"] == 2
    for program in compiled.values():
        assert program["largest array"] < program["scores"] / 8


def test_four_chips_compute_one_row_each_and_the_compiler_knows_the_cost(compiled):
    for program in compiled.values():  # if rows were gathered, each chip would compute four times the attention
        assert program["gathers"] == 0
        assert program["flops of attention"] < program["flops"] < 2 * program["flops of attention"]

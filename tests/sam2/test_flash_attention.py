"""Flash attention: the kernels, interpreted, against plain attention; and what the TPU's compiler makes of them."""

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

BLOCK = (256, 256)  # of 16-bit numbers: 128 of float32


def operands(n, m, heads, d, dv, dtype, seed=0):
    """Queries, keys, values and a gradient, of three rows."""
    rng = np.random.default_rng(seed)
    shapes = ((3, n, heads, d), (3, m, heads, d), (3, m, heads, dv), (3, n, heads, dv))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def some_valid(m, seed=0):
    """Half of a row's keys; the last of another's, so that its first blocks are empty; and none."""
    valid = np.random.default_rng(seed).random((3, m)) < 0.5
    valid[1, : m - 20] = False
    valid[2] = False
    return jnp.asarray(valid)


def plain(q, k, v, valid, gradient):
    out, vjp = jax.vjp(lambda q, k, v: attention._attend_at_once(q, k, v, valid), q, k, v)
    return out, *vjp(gradient)


def flash(q, k, v, valid, gradient):
    kernels = {"block": BLOCK, "interpret": True}
    out, logsumexp = flash_attention.forward(q, k, v, valid, **kernels)
    return out, *flash_attention.backward(q, k, v, valid, out, logsumexp, gradient, **kernels)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n, m, heads", [(256, 256, 1), (200, 300, 2)])  # whole blocks, and ragged ones
def test_the_kernels_equal_plain_attention_in_value_and_gradients(n, m, heads, masked):
    q, k, v, gradient = operands(n, m, heads, 32, 16, jnp.float32)
    valid = some_valid(m) if masked else None
    for got, want in zip(flash(q, k, v, valid, gradient), plain(q, k, v, valid, gradient), strict=True):
        assert got.dtype == want.dtype
        # float32 sums of 300 numbers of order one, in another order
        np.testing.assert_allclose(got, want, atol=4e-6)


def test_in_bfloat16_the_kernels_are_true_to_bfloat16():
    exact = operands(200, 300, 1, 32, 16, jnp.bfloat16)
    valid = some_valid(300)
    truth = plain(*(x.astype(jnp.float32) for x in exact[:3]), valid, exact[3].astype(jnp.float32))
    for got, want in zip(flash(*exact[:3], valid, exact[3]), truth, strict=True):
        assert got.dtype == jnp.bfloat16
        # Eight bits of weights, of their gradients and of the result: plain attention errs by 1.9 to 3.7e-3, too.
        assert np.linalg.norm(got.astype(np.float32) - want) < 2**-8 * np.linalg.norm(want)


def test_a_row_without_a_valid_key_takes_the_mean_and_sends_gradients_to_values_only():
    q, k, v, gradient = operands(200, 300, 1, 32, 16, jnp.float32)
    out, dq, dk, dv = flash(q, k, v, jnp.zeros((3, 300), bool), gradient)
    np.testing.assert_allclose(out, jnp.broadcast_to(v.mean(1, keepdims=True), out.shape), atol=1e-6)
    np.testing.assert_array_equal(dq, 0)
    np.testing.assert_array_equal(dk, 0)
    np.testing.assert_allclose(dv, jnp.broadcast_to(gradient.sum(1, keepdims=True) / 300, dv.shape), atol=1e-6)


def test_off_the_tpu_nothing_of_the_kernels_is_lowered_and_all_is_as_in_blocks(monkeypatch):
    monkeypatch.setattr(attention, "MAX_SCORES", 1000)
    q, k, v, gradient = operands(40, 100, 2, 8, 4, jnp.float32)
    valid = some_valid(100)

    @jax.jit
    def ours(q, k, v, valid, gradient):
        out, vjp = jax.vjp(lambda q, k, v: attention.attend(q, k, v, valid), q, k, v)
        return out, *vjp(gradient)

    @jax.jit
    def blocks(q, k, v, valid, gradient):
        forward, backward = map(blocked_attention.one_by_one, (blocked_attention.forward, blocked_attention.backward))
        out, logsumexp = forward(q, k, v, valid)
        return out, *backward(q, k, v, valid, out, logsumexp, gradient)

    given = q, k, v, valid, gradient
    assert "custom_call" not in ours.lower(*given).as_text()
    for got, want in zip(ours(*given), blocks(*given), strict=True):
        np.testing.assert_array_equal(got, want)


def test_attention_of_arrays_on_a_mesh_can_be_differentiated_in_a_checkpointed_scan(monkeypatch):
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

    def plainly(q, k, v):
        for _ in range(3):
            q = attention._attend_at_once(q, k, v, None)
        return jnp.square(q).sum()

    for got, want in zip(gradients(*placed), jax.grad(plainly, (0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)  # three products deep


@pytest.fixture(scope="module")
def compiled():
    """What `compile_for_tpu.py` saw, in a process of its own: libtpu's settings are the environment's."""
    script = Path(__file__).parents[1] / "helpers" / "compile_for_tpu.py"
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def test_memory_attention_at_1024_px_compiles_for_tpu_to_kernels_and_holds_no_scores(compiled):
    # Self-attention and the attention to the memory: forward, recomputed by the checkpoint, and backward.
    assert compiled["prediction"]["forward kernels"] == 2
    assert compiled["training"]["forward kernels"] == 4
    assert compiled["training"]["backward kernels"] == 2
    for seen in compiled.values():
        assert seen["largest array"] < seen["scores"] / 8


def test_four_chips_attend_from_one_row_each_and_the_compiler_knows_what_it_costs(compiled):
    for seen in compiled.values():  # were rows gathered, attention would count four times on each chip
        assert seen["gathers"] == 0
        assert seen["flops of attention"] < seen["flops"] < 2 * seen["flops of attention"]

"""Masked keys in attention, and the reassociated value product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax.sam2 import attention
from sam2_3dmed_jax.sam2.attention import RoPEAttention
from sam2_3dmed_jax.sam2.parameters import merge, split


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def reference_attention(q, k, v):
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) / jnp.sqrt(q.shape[-1])
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores, -1), v)


def test_masked_keys_have_no_effect():
    q, k, v = random(1, 6, 1, 8), random(1, 10, 1, 8, seed=1), random(1, 10, 1, 8, seed=2)
    valid = jnp.arange(10) % 3 != 0
    masked = attention.attend(q, k, v, valid[None])
    np.testing.assert_allclose(masked, reference_attention(q, k[:, valid], v[:, valid]), atol=2e-6)


def test_rows_without_valid_keys_have_finite_values_and_gradients():
    q, k, v = random(1, 6, 1, 8), random(1, 10, 1, 8, seed=1), random(1, 10, 1, 8, seed=2)
    no_valid_key = jnp.zeros((1, 10), bool)
    out, gradient = jax.value_and_grad(lambda q: attention.attend(q, k, v, no_valid_key).sum())(q)
    assert jnp.isfinite(out) and jnp.isfinite(gradient).all()


@pytest.mark.parametrize("pointers", [0, 8])
def test_reassociated_values_equal_projected_values(pointers):
    module = RoPEAttention(32, 16, dtype=jnp.float32)
    graphdef, weights = split(module)
    weights = {path: 0.3 * random(*value.shape, seed=i) for i, (path, value) in enumerate(weights.items())}
    module = merge(graphdef, weights)
    q, memory = random(2, 16, 32), random(2, 3 * 16 + pointers, 16, seed=9)
    reassociated = module(q, memory, memory, 4, pointers)
    module.reassociate_values = False
    np.testing.assert_allclose(reassociated, module(q, memory, memory, 4, pointers), atol=1e-5)

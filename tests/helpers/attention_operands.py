"""Operands of attention tests, and plain attention with autodiff to compare with."""

import jax
import jax.numpy as jnp
import numpy as np

from sam2_3dmed_jax.sam2 import attention


def operands(n, m, heads, d, dv, dtype=jnp.float32):
    """Return queries, keys, values and a gradient, of three rows."""
    rng = np.random.default_rng(0)
    shapes = ((3, n, heads, d), (3, m, heads, d), (3, m, heads, dv), (3, n, heads, dv))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def some_valid(m, valid_in_last_row=0):
    """Return masks of half of the keys, of only the last keys (the first blocks are empty), and of few or no keys."""
    valid = np.random.default_rng(0).random((3, m)) < 0.5
    valid[1, : m - 20] = False
    valid[2] = np.arange(m) < valid_in_last_row
    return jnp.asarray(valid)


def plain(q, k, v, valid, gradient):
    """Return attention at once and its gradients, by autodiff."""
    out, vjp = jax.vjp(lambda q, k, v: attention._attend_at_once(q, k, v, valid), q, k, v)
    return out, *vjp(gradient)


def results_of(module, q, k, v, valid, gradient, **settings):
    """Return `forward` and `backward` of an implementation, as `plain` does."""
    out, logsumexp = module.forward(q, k, v, valid, **settings)
    return out, *module.backward(q, k, v, valid, out, logsumexp, gradient, **settings)

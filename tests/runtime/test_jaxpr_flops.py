"""FLOPs are counted as often as they run: scans in scans, the dearest branch, loops with a known end."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas as pl

from sam2_3dmed_jax.runtime.jaxpr_flops import flops

PRODUCT = 2 * 4 * 8 * 8  # of [4, 8] and [8, 8]
X, W = jnp.ones((4, 8)), jnp.ones((8, 8))


def count(function, *arguments):
    return flops(jax.make_jaxpr(function)(*arguments))


def times(n, function):
    return lambda x, w: lax.scan(lambda x, _: (function(x, w), None), x, None, length=n)[0]


def product(x, w):
    return x @ w


def test_nested_scans_count_the_product_of_their_lengths():
    assert count(times(3, times(5, product)), X, W) == 15 * PRODUCT


def test_the_most_expensive_branch_counts_and_jit_remat_and_custom_derivatives_are_entered():
    def body(x, w):
        x = lax.cond(x.sum() > 0, product, lambda x, w: (x @ w) @ w, x, w)
        return jax.jit(jax.checkpoint(product))(x, w)

    @jax.custom_vjp
    def own(x, w):
        return x @ w

    own.defvjp(lambda x, w: (x @ w, w), lambda w, g: (g @ w.T, w))
    assert count(times(7, body), X, W) == 7 * 3 * PRODUCT
    assert count(own, X, W) == PRODUCT


def test_a_gradient_counts_its_two_products_and_the_forward_one():
    gradient = jax.grad(lambda w, x: (times(6, product)(x, w) ** 2).sum(), argnums=(0, 1))
    assert count(gradient, W, X) == 3 * 6 * PRODUCT


def test_a_batched_product_and_a_grouped_convolution_count_each_multiply_add_twice():
    a, b = jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6))
    assert count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), a, b) == 2 * 3 * 4 * 5 * 6
    image, kernel = jnp.ones((2, 9, 9, 8)), jnp.ones((3, 3, 4, 6))

    def convolve(x, k):
        return lax.conv_general_dilated(
            x, k, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )

    assert count(convolve, image, kernel) == 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4)


@pytest.mark.parametrize("end, turns", [(9, 9), (None, 1)])
def test_a_while_loop_to_a_constant_counts_its_iterations_and_any_other_counts_once(end, turns):
    def loop(x, w, n):
        limit = n if end is None else end
        return lax.while_loop(lambda c: c[0] < limit, lambda c: (c[0] + 1, c[1] @ w), (0, x))

    assert count(loop, X, W, 3) == turns * PRODUCT


def test_a_pallas_call_counts_what_it_estimates():
    call = pl.pallas_call(
        lambda x, o: None,
        out_shape=jax.ShapeDtypeStruct((4, 8), jnp.float32),
        cost_estimate=pl.CostEstimate(flops=1234, bytes_accessed=0, transcendentals=0),
    )
    assert count(lambda x: call(x), X) == 1234

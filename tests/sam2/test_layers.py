"""Convolutions, pooling and sequences of linear layers equal XLA's own or plain forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sam2_3dmed_jax.sam2.layers import (
    Conv,
    Linear,
    add_bias,
    apply_in_sequence,
    depthwise_convolution,
    max_pool_2x2,
    project_windows,
    window_partition,
)
from sam2_3dmed_jax.sam2.parameters import merge, split

TOLERANCE = 1e-5  # of the largest value: float32 sums of a few hundred products in a different order


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert float(jnp.abs(ours - theirs).max()) <= TOLERANCE * float(jnp.abs(theirs).max())


# Every kind of convolution in SAM 2, and sizes that the stride does not divide.
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [
        (7, 4, 3, 32),
        (7, 4, 3, 33),
        (7, 4, 3, 30),
        (3, 2, 1, 16),
        (3, 2, 1, 15),
        (4, 4, 0, 16),
        (2, 2, 0, 8),
        (3, 1, 1, 9),
    ],
)
def test_a_convolution_and_its_gradients_equal_xlas(kernel, stride, padding, size):
    conv = Conv(3, 5, kernel=kernel, stride=stride, padding=padding, dtype=jnp.float32)
    x, weight = normal(0, 2, size, size + stride, 3), normal(1, kernel, kernel, 3, 5)

    graphdef, weights = split(conv)

    def ours(x, weight):
        return merge(graphdef, {**weights, "kernel": weight})(x)

    def theirs(x, weight):
        pads = ((padding, padding), (padding, padding))
        axes = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, weight, (stride, stride), pads, dimension_numbers=axes, precision="highest")

    assert_close(ours(x, weight), theirs(x, weight))
    for mine, xlas in zip(gradients(ours, x, weight), gradients(theirs, x, weight), strict=True):
        assert_close(mine, xlas)


def test_a_convolution_transposes_no_pixels():
    """Cutting 4 x 4 blocks of a slice into taps took a TPU two fifths of the encoder's time."""
    graphdef, weights = split(Conv(3, 5, kernel=7, stride=4, padding=3, dtype=jnp.bfloat16))
    traced = jax.make_jaxpr(lambda weights, x: merge(graphdef, weights)(x))(weights, normal(0, 1, 32, 32, 3))
    names = {str(equation.primitive) for equation in traced.eqns}
    assert "dot_general" in names and not names & {"transpose", "gather", "conv_general_dilated"}


def test_a_depthwise_convolution_and_its_gradients_equal_xlas():
    x, weight = normal(0, 2, 9, 8, 6), normal(1, 7, 7, 6)

    def theirs(x, weight):
        axes = ("NHWC", "HWIO", "NHWC")
        pads = ((3, 3), (3, 3))
        return lax.conv_general_dilated(
            x, weight[:, :, None], (1, 1), pads, dimension_numbers=axes, feature_group_count=6, precision="highest"
        )

    assert_close(depthwise_convolution(x, weight), theirs(x, weight))
    for mine, xlas in zip(gradients(depthwise_convolution, x, weight), gradients(theirs, x, weight), strict=True):
        assert_close(mine, xlas)


def test_max_pooling_equals_xlas_and_drops_an_odd_row():
    x = normal(0, 2, 9, 8, 6)
    np.testing.assert_array_equal(
        max_pool_2x2(x), lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    )


def test_two_linear_layers_as_one_product_equal_one_after_the_other():
    first, second = Linear(6, 32, dtype=jnp.float32), Linear(32, 4, dtype=jnp.float32)
    for seed, layer in enumerate((first, second)):
        layer.kernel.set_value(normal(seed, *layer.kernel.shape))
        layer.bias.set_value(normal(seed + 2, *layer.bias.shape))
    x = normal(9, 2, 5, 5, 6)
    assert_close(apply_in_sequence(x, first, second), second(first(x)))
    np.testing.assert_array_equal(apply_in_sequence(x, first, None), first(x))


def test_projecting_before_the_window_partition_equals_projecting_the_windows():
    layer = Linear(6, 9, dtype=jnp.float32)
    layer.kernel.set_value(normal(0, 6, 9))
    layer.bias.set_value(normal(1, 9))
    x = normal(2, 2, 5, 7, 6)  # windows of 4 x 4 reach beyond it
    assert_close(project_windows(layer, x, 4), layer(window_partition(x, 4)))
    np.testing.assert_array_equal(project_windows(layer, x, 0), layer(x))


def gradients(function, x, weight):
    return jax.grad(lambda x, weight: jnp.square(function(x, weight)).sum(), (0, 1))(x, weight)


def test_the_tests_reject_implicit_rank_promotion():
    with pytest.raises(ValueError, match="jax_numpy_rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)


def test_a_bias_is_added_over_the_last_axis_in_the_dtype_of_the_result():
    y = jnp.zeros((2, 3, 4), jnp.bfloat16)
    biased = add_bias(y, jnp.arange(4.0))
    assert biased.dtype == jnp.bfloat16
    np.testing.assert_array_equal(biased, np.broadcast_to(np.arange(4.0), (2, 3, 4)))

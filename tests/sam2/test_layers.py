"""Convolutions, pooling and sequences of linear layers equal XLA's own or plain forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from sam2_3dmed_jax.sam2 import layers
from sam2_3dmed_jax.sam2.layers import (
    Conv,
    Linear,
    add_bias,
    apply_in_sequence,
    depthwise_convolution,
    layer_norm,
    max_pool_2x2,
    product,
    window_partition,
)
from sam2_3dmed_jax.sam2.parameters import merge, split
from sam2_3dmed_jax.sam2.rounded_weights import round_before_loop

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
    program = str(traced)  # with the functions that it calls
    assert "dot_general" in program
    assert not any(name in program for name in ("transpose", "gather", "conv_general_dilated"))


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


def test_parts_of_a_projection_equal_its_split_on_slices_and_in_windows():
    layer = Linear(6, 9, dtype=jnp.float32)
    layer.kernel.set_value(normal(0, 6, 9))
    layer.bias.set_value(normal(1, 9))
    x = normal(2, 2, 5, 7, 6)  # windows of 4 x 4 reach beyond it
    for parts, whole in ((layer.parts(x, 3), layer(x)), (layer.parts(x, 3, 4), layer(window_partition(x, 4)))):
        for part, expected in zip(parts, jnp.split(whole, 3, axis=-1), strict=True):
            assert_close(part, expected)


def gradients(function, *arguments):
    return jax.grad(lambda *given: jnp.square(function(*given)).sum(), range(len(arguments)))(*arguments)


def test_the_tests_reject_implicit_rank_promotion():
    with pytest.raises(ValueError, match="jax_numpy_rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)


def test_a_bias_is_added_over_the_last_axis_in_the_dtype_of_the_result():
    y = jnp.zeros((2, 3, 4), jnp.bfloat16)
    biased = add_bias(y, jnp.arange(4.0))
    assert biased.dtype == jnp.bfloat16
    np.testing.assert_array_equal(biased, np.broadcast_to(np.arange(4.0), (2, 3, 4)))


def in_bfloat16(*arrays):
    return [jnp.asarray(array, jnp.bfloat16) for array in arrays]


def test_a_layer_norm_in_bfloat16_and_its_gradients_equal_those_of_flax():
    x, scale, bias = in_bfloat16(normal(0, 3, 5, 8), normal(1, 8), normal(2, 8))
    theirs = nnx.LayerNorm(8, epsilon=1e-6, dtype=jnp.bfloat16, use_fast_variance=False, rngs=nnx.Rngs(0))
    mine = layer_norm(8, eps=1e-6, dtype=jnp.bfloat16)

    def apply(norm):
        graphdef, _ = split(norm)
        return lambda x, scale, bias: merge(graphdef, {"scale": scale, "bias": bias})(x)

    np.testing.assert_array_equal(apply(mine)(x, scale, bias), apply(theirs)(x, scale, bias))
    # One rounding to bfloat16, relative to gradients of order 10.
    both = (gradients(apply(norm), x, scale, bias) for norm in (mine, theirs))
    for own, other in zip(*both, strict=True):
        np.testing.assert_allclose(own.astype(jnp.float32), other.astype(jnp.float32), atol=0.1)


def test_the_product_of_gpus_in_bfloat16_and_its_gradients_equal_those_of_other_platforms():
    x, gradient = in_bfloat16(normal(0, 6, 16), normal(1, 6, 4))
    kernel = normal(2, 16, 4)
    np.testing.assert_array_equal(layers._rounded_product(x, kernel), product(x, kernel, jnp.bfloat16))
    own = layers._rounded_product_gradients(x, kernel, gradient)
    for mine, theirs, like in zip(own, layers._product_backward((x, kernel), gradient), (x, kernel), strict=True):
        assert mine.dtype == theirs.dtype == like.dtype
        # The gradient of the kernel is not rounded on GPUs, and to 8 bits elsewhere.
        np.testing.assert_allclose(mine.astype(jnp.float32), theirs.astype(jnp.float32), rtol=2**-8)


def test_the_librarys_gradients_of_a_depthwise_convolution_equal_ours():
    x, kernel, gradient = normal(0, 2, 9, 8, 5), normal(1, 7, 7, 5), normal(2, 2, 9, 8, 5)
    ours = layers._depthwise_gradients(x, kernel, gradient)
    for mine, library in zip(ours, layers._library_depthwise_gradients(x, kernel, gradient), strict=True):
        assert_close(mine, library)


def test_gradients_of_weights_that_are_rounded_before_a_loop_are_summed_in_float32():
    model = Linear(4, 4, dtype=jnp.bfloat16)
    model.kernel[...] = normal(0, 4, 4)
    graphdef, weights = split(model)
    xs = normal(1, 5, 3, 4)

    def loss(weights, hoist):
        model = merge(graphdef, weights)
        in_loop = round_before_loop(model) if hoist else lambda: model
        total, _ = jax.lax.scan(lambda sum_, x: (sum_ + (in_loop()(x).astype(jnp.float32) ** 2).sum(), None), 0.0, xs)
        return total

    value, gradient = jax.value_and_grad(loss)(weights, True)
    expected_value, expected = jax.value_and_grad(loss)(weights, False)
    assert value == expected_value
    for name in weights:
        assert gradient[name].dtype == jnp.float32
        np.testing.assert_array_equal(gradient[name], expected[name])

"""The convolution for CPU and its gradients equal XLA's convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax.unet.convolution import BLOCK, MANY_CHANNELS, convolve_by_matmul, convolve_by_xla

STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 1, 1))


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize(
    ("shape", "taps"),
    [
        ((2, 4, 6, 2 * BLOCK, 2), (1, 3, 3)),  # blocks along W, also with a stride
        ((1, 4, 5, 3, 2), (3, 3, 3)),  # a width that blocks do not divide
        ((1, 3, 4, BLOCK, MANY_CHANNELS), (3, 3, 5)),  # many channels: no blocks
        ((1, 4, 4, BLOCK, 3), (1, 1, 1)),
    ],
)
def test_the_convolution_by_matmul_and_its_gradients_equal_xlas_convolution(shape, taps, stride):
    rng = np.random.default_rng(0)
    x, kernel = jnp.float32(rng.normal(size=shape)), jnp.float32(rng.normal(size=(*taps, shape[-1], 5)))

    def value_and_gradients(convolve):
        def loss(x, kernel):
            y = convolve(x, kernel, stride, jnp.float32)
            weights = np.random.default_rng(1).normal(size=y.shape)  # so that each voxel has a different gradient
            return jnp.sum(y * jnp.float32(weights)), y

        (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)
        return y, *gradients

    for result, expected in zip(
        value_and_gradients(convolve_by_matmul), value_and_gradients(convolve_by_xla), strict=True
    ):
        # Relative to the largest value: sums of up to 2400 float32 products in a different order.
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))

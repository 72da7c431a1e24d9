"""The convolution of the CPU is that of other chips, and so are its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax.unet.convolution import BLOCK, FEW, by_library, by_products

STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 1, 1))


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize(
    ("shape", "taps"),
    [
        ((2, 4, 6, 2 * BLOCK, 2), (1, 3, 3)),  # rows in blocks, also with a stride
        ((1, 4, 5, 3, 2), (3, 3, 3)),  # a row that blocks do not divide
        ((1, 3, 4, BLOCK, FEW), (3, 3, 5)),  # many channels: no blocks
        ((1, 4, 4, BLOCK, 3), (1, 1, 1)),
    ],
)
def test_the_convolution_of_the_cpu_is_that_of_other_chips_and_so_are_its_gradients(shape, taps, stride):
    rng = np.random.default_rng(0)
    x, kernel = jnp.float32(rng.normal(size=shape)), jnp.float32(rng.normal(size=(*taps, shape[-1], 5)))

    def of(convolve):
        def loss(x, kernel):
            y = convolve(x, kernel, stride, jnp.float32)
            weights = np.random.default_rng(1).normal(size=y.shape)  # so that each voxel has a gradient of its own
            return jnp.sum(y * jnp.float32(weights)), y

        (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)
        return y, *gradients

    for found, expected in zip(of(by_products), of(by_library), strict=True):
        # Sums of up to 2400 float32 products in another order: of the largest number.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))

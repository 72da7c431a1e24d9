"""ImageNet normalisation is the same on the host and in JAX."""

import jax.numpy as jnp
import numpy as np

from sam2_3dmed_jax.runtime.imagenet import IMAGENET_MEAN, normalise


def test_numpy_and_jax_arrays_are_normalised_alike():
    unit = np.random.default_rng(0).random((2, 8, 8), np.float32)
    on_host, in_jax = normalise(unit), normalise(jnp.asarray(unit))
    assert on_host.shape == (2, 8, 8, 3) and on_host.dtype == in_jax.dtype == np.float32
    np.testing.assert_allclose(on_host, in_jax, rtol=0, atol=5e-7)  # two roundings of numbers up to 3


def test_the_mean_becomes_zero_in_its_channel():
    for channel, mean in enumerate(IMAGENET_MEAN):
        assert normalise(np.full((1, 1), mean, np.float32))[0, 0, channel] == 0

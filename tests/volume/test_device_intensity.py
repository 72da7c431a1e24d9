"""Preprocessing in JAX against preprocessing on the host."""

import jax
import numpy as np
import pytest

from sam2_3dmed_jax.volume.device_intensity import prepare, to_upload
from sam2_3dmed_jax.volume.intensity import prepare_slices, resize_matrices, window_ends

WINDOW = (37.5, 425.3)
# Values are at most 1; a pixel is the sum of at most a few hundred products, which XLA and BLAS add in other orders.
TOLERANCE = 4 * float(np.finfo(np.float32).eps)


def slices_of(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    hu = np.random.default_rng(0).normal(0, 300, shape)
    return (np.abs(hu) % 256 if dtype == "uint8" else hu).astype(dtype)


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32"])
@pytest.mark.parametrize(
    ("shape", "size"), [((3, 51, 37), 128), ((3, 200, 133), 64), ((2, 64, 64), 64), ((1, 1, 7), 32), ((2, 300, 20), 48)]
)
def test_slices_prepared_in_jax_equal_those_of_the_host(dtype, shape, size):
    grey = slices_of(shape, dtype)
    on_device = jax.jit(prepare)(grey, *window_ends(WINDOW), *resize_matrices(shape[1:], (size, size)))
    assert on_device.dtype == np.float32 and on_device.shape == (shape[0], size, size)
    np.testing.assert_allclose(on_device, prepare_slices(grey, WINDOW, size), rtol=0, atol=TOLERANCE)


def test_another_window_needs_no_compilation():
    program = jax.jit(lambda *arguments: prepare(*arguments))
    grey, matrices = slices_of((2, 20, 30), "int16"), resize_matrices((20, 30), (32, 32))
    for window in (WINDOW, (-600.0, 1500.0)):
        program(grey, *window_ends(window), *matrices)
    assert program._cache_size() == 1


@pytest.mark.parametrize(
    ("dtype", "uploaded"),
    [("int16", "int16"), ("uint8", "uint8"), ("float32", "float32"), ("float64", "float32"), (">i2", "float32")],
)
def test_small_dtypes_are_uploaded_as_they_are(dtype, uploaded):
    assert to_upload(np.zeros((1, 2, 2), dtype)).dtype == np.dtype(uploaded)

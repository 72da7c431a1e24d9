"""3D convolution over channels-last volumes: matrix products on CPU, XLA's convolution elsewhere.

On CPU, XLA's 3D convolution runs at a few GFLOP/s and its gradients take many times as long. With the few channels that
fit a volume, one product per tap is as slow, because `[voxels, 8] @ [8, 8]` is bound by memory traffic. Therefore
several neighbouring voxels form one row of the product and the kernel becomes a banded matrix, whose zeros cost less
than the traffic that they save.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from sam2_3dmed_jax.sam2.layers import precision_of, product
from sam2_3dmed_jax.unet.topology import Triple

BLOCK = 4  # neighbouring voxels along W that are computed together
MANY_CHANNELS = 32  # with this many channels a single voxel per row of the product is enough


def convolve(x: jax.Array, kernel: jax.Array, stride: Triple, dtype: DTypeLike) -> jax.Array:
    """Convolve with an odd kernel and symmetric zero padding.

    Args:
        x: `[B, D, H, W, C]`.
        kernel: `[d, h, w, C, out]`.
        stride: stride along the three axes.
        dtype: dtype of the operands and the result; sums are float32.

    Returns:
        `[B, ceil(D / stride), ceil(H / stride), ceil(W / stride), out]`.
    """

    def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve_by_matmul(x, kernel, stride, dtype)

    def xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve_by_xla(x, kernel, stride, dtype)

    return lax.platform_dependent(x.astype(dtype), kernel.astype(dtype), cpu=matmul, default=xla)


def convolve_by_xla(x: jax.Array, kernel: jax.Array, stride: Triple, dtype: DTypeLike) -> jax.Array:
    """Implement `convolve` with XLA's convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        [(k // 2, k // 2) for k in kernel.shape[:3]],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        precision=precision_of(dtype),
    )


def convolve_by_matmul(x: jax.Array, kernel: jax.Array, stride: Triple, dtype: DTypeLike) -> jax.Array:
    """Implement `convolve` with one product per tap along the first two axes, over blocks of voxels along W."""
    taps, (channels, out) = kernel.shape[:3], kernel.shape[3:]
    depth, height, width = (-(-n // s) for n, s in zip(x.shape[1:4], stride, strict=True))
    block = BLOCK if taps[2] > 1 and channels < MANY_CHANNELS and width % BLOCK == 0 else 1
    banded = jnp.einsum("zykco,ikj->zyicjo", kernel, _band(taps[2], stride[2], block, kernel.dtype))
    banded = banded.reshape(*taps[:2], -1, block * out)
    windows = _windows(
        jnp.pad(x, [(0, 0), *((k // 2, k // 2) for k in taps), (0, 0)]), taps[2], stride[2], block, width
    )
    total = jnp.zeros((), dtype)
    for z, y in itertools.product(*map(range, taps[:2])):
        ends = (z + stride[0] * (depth - 1) + 1, y + stride[1] * (height - 1) + 1)
        tap = lax.slice(windows, (0, z, y, 0, 0), (len(x), *ends, *windows.shape[3:]), (1, *stride[:2], 1, 1))
        total = total + product(tap, banded[z, y], dtype)
    return total.reshape(len(x), depth, height, width, out)


def _band(taps: int, stride: int, block: int, dtype: DTypeLike) -> jax.Array:
    """Return `[stride (block - 1) + taps, taps, block]`: 1 where output `j` reads input `i` of a window by tap `k`."""
    i, k, j = np.ogrid[: stride * (block - 1) + taps, :taps, :block]
    return jnp.asarray(i == stride * j + k, dtype)


def _windows(padded: jax.Array, taps: int, stride: int, block: int, width: int) -> jax.Array:
    """Gather the inputs of each block along W: `[B, D, H, W, C]` to `[B, D, H, width / block, window C]`."""
    step = stride * block
    last = step * (width // block - 1) + 1
    inputs = [lax.slice_in_dim(padded, i, i + last, step, axis=3) for i in range(stride * (block - 1) + taps)]
    return jnp.concatenate(inputs, axis=-1)

"""3D convolution over channels-last volumes: XLA's own where there are fast ones, matrix products on CPU.

XLA's 3D convolution on CPU runs at a few GFLOP/s, and its gradients take many times as long. With the few channels that
a volume affords, a product a tap is as slow: `[voxels, 8] @ [8, 8]` is all traffic. So some neighbouring voxels are one
row of the product: the kernel becomes a banded matrix, whose zeros cost less than the traffic that it saves.
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

BLOCK = 4  # voxels of a row that are computed together
FEW = 32  # channels from which on a voxel alone fills a product


def convolve(x: jax.Array, kernel: jax.Array, stride: Triple, dtype: DTypeLike) -> jax.Array:
    """Convolve with an odd kernel, padded evenly with zeros.

    Args:
        x: `[B, D, H, W, C]`.
        kernel: `[d, h, w, C, out]`.
        stride: along the three axes.
        dtype: of the operands and the result; sums are float32.

    Returns:
        `[B, ceil(D / stride), ceil(H / stride), ceil(W / stride), out]`.
    """

    def products(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return by_products(x, kernel, stride, dtype)

    def library(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return by_library(x, kernel, stride, dtype)

    return lax.platform_dependent(x.astype(dtype), kernel.astype(dtype), cpu=products, default=library)


def by_library(x: jax.Array, kernel: jax.Array, stride: Triple, dtype: DTypeLike) -> jax.Array:
    """`convolve` by XLA's convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        [(k // 2, k // 2) for k in kernel.shape[:3]],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        precision=precision_of(dtype),
    )


def by_products(x: jax.Array, kernel: jax.Array, stride: Triple, dtype: DTypeLike) -> jax.Array:
    """`convolve` as a product for each tap along the first two axes, each with a block of voxels of a row."""
    taps, (channels, out) = kernel.shape[:3], kernel.shape[3:]
    depth, height, width = (-(-n // s) for n, s in zip(x.shape[1:4], stride, strict=True))
    block = BLOCK if taps[2] > 1 and channels < FEW and width % BLOCK == 0 else 1
    banded = jnp.einsum("zykco,ikj->zyicjo", kernel, _band(taps[2], stride[2], block, kernel.dtype))
    banded = banded.reshape(*taps[:2], -1, block * out)
    rows = _windows(jnp.pad(x, [(0, 0), *((k // 2, k // 2) for k in taps), (0, 0)]), taps[2], stride[2], block, width)
    total = jnp.zeros((), dtype)
    for z, y in itertools.product(*map(range, taps[:2])):
        ends = (z + stride[0] * (depth - 1) + 1, y + stride[1] * (height - 1) + 1)
        seen = lax.slice(rows, (0, z, y, 0, 0), (len(x), *ends, *rows.shape[3:]), (1, *stride[:2], 1, 1))
        total = total + product(seen, banded[z, y], dtype)
    return total.reshape(len(x), depth, height, width, out)


def _band(taps: int, stride: int, block: int, dtype: DTypeLike) -> jax.Array:
    """1 where input `i` of a window meets tap `k` of output `j`: `[stride (block - 1) + taps, taps, block]`."""
    i, k, j = np.ogrid[: stride * (block - 1) + taps, :taps, :block]
    return jnp.asarray(i == stride * j + k, dtype)


def _windows(padded: jax.Array, taps: int, stride: int, block: int, width: int) -> jax.Array:
    """What each block of a row sees: `[B, D, H, W, C]` to `[B, D, H, width / block, window C]`."""
    step = stride * block
    last = step * (width // block - 1) + 1
    seen = [lax.slice_in_dim(padded, i, i + last, step, axis=3) for i in range(stride * (block - 1) + taps)]
    return jnp.concatenate(seen, axis=-1)

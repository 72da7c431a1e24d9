"""Weights of products rounded to the compute dtype once, before a loop over slices, and not in each of its iterations.

XLA's GPU compiler does not move a cast out of a loop, and starts a kernel for each. Results do not change.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from sam2_3dmed_jax.sam2.layers import Conv, ConvTranspose2x2, DepthwiseConv7x7, Linear
from sam2_3dmed_jax.sam2.parameters import merge, split

# Kernels that `apply_in_sequence` multiplies in float32.
_MULTIPLIED = re.compile(r"(^|\.)(image_encoder\.neck|conv_s[01])\.")


def round_before_loop(model: Any) -> Callable[[], Any]:
    """Round the weights of a model's products to their compute dtype.

    Returns:
        A function that returns the model with these weights, to be called in the body of the loop. Gradients reach the
        float32 weights of `model`, and their sum over the iterations is in float32.
    """
    rounded: dict[str, jax.Array] = {}
    graphdef, weights = split(model)
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Linear | Conv | ConvTranspose2x2 | DepthwiseConv7x7):
            names = [".".join(map(str, (*path, name))) for name in ("kernel", "bias")]
            if jnp.dtype(module.dtype) != jnp.float32 and not _MULTIPLIED.search(names[0]):
                rounded |= {name: lax.stop_gradient(weights[name].astype(module.dtype)) for name in names}
    if not rounded:
        return lambda: model
    return lambda: merge(graphdef, weights | {name: _rounded(x, weights[name]) for name, x in rounded.items()})


@jax.custom_vjp
def _rounded(rounded: jax.Array, weight: jax.Array) -> jax.Array:
    """Return `rounded`, whose gradient is the gradient of `weight`."""
    return rounded


_rounded.defvjp(
    lambda rounded, weight: (rounded, None),
    lambda _, gradient: (None, gradient.astype(jnp.float32)),
)

"""Weights of products and norms rounded to the compute dtype once: for a session, or before a loop over slices.

Results do not change. XLA's GPU compiler does not move a cast out of a loop, and starts a kernel for each; on CPU a
third of the kernels that are compiled for a slice are casts of weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from sam2_3dmed_jax.sam2.layers import Conv, ConvTranspose2x2, DepthwiseConv7x7, LayerNorm, Linear
from sam2_3dmed_jax.sam2.parameters import Weights, merge, split

# Kernels that `apply_in_sequence` multiplies in float32.
_MULTIPLIED = re.compile(r"(^|\.)(image_encoder\.neck|conv_s[01])\.")


def round_before_loop(model: Any) -> Callable[[], Any]:
    """Round the weights of a model's products and norms to their compute dtype.

    Returns:
        A function that returns the model with these weights, to be called in the body of the loop. Gradients reach the
        float32 weights of `model`, and their sum over the iterations is in float32.
    """
    graphdef, weights = split(model)
    rounded = {name: lax.stop_gradient(weights[name].astype(dtype)) for name, dtype in _rounded_dtypes(model).items()}
    if not rounded:
        return lambda: model
    return lambda: merge(graphdef, weights | {name: _rounded(x, weights[name]) for name, x in rounded.items()})


def split_rounded(model: Any) -> tuple[nnx.GraphDef[Any], Weights]:
    """Split a model as `split` does, with weights of products and norms in their compute dtype; nothing is compiled."""
    graphdef, weights = split(model)

    def rounded(weight: jax.Array, dtype: jnp.dtype) -> jax.Array:
        # An array that is committed to a device compiles another program than one that is not.
        place = weight.sharding if weight.committed else None
        moved: jax.Array = jax.device_put(np.asarray(weight).astype(dtype), place)
        return moved

    changed = {name: rounded(weights[name], dtype) for name, dtype in _rounded_dtypes(model).items()}
    return graphdef, weights | changed


def rounded_shapes(graphdef: nnx.GraphDef[Any], weights: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of what `split_rounded` returns, from the shapes of all weights."""
    dtypes = _rounded_dtypes(merge(graphdef, weights))
    return {name: x.update(dtype=dtypes.get(name, x.dtype)) for name, x in weights.items()}


def _rounded_dtypes(model: Any) -> dict[str, jnp.dtype]:
    """Return the compute dtype of each weight that is rounded, by path."""
    dtypes: dict[str, jnp.dtype] = {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Linear | Conv | ConvTranspose2x2 | DepthwiseConv7x7 | LayerNorm):
            own = ("scale", "bias") if isinstance(module, LayerNorm) else ("kernel", "bias")
            names = [".".join(map(str, (*path, name))) for name in own]
            dtype = jnp.dtype(module.dtype)
            if dtype != jnp.float32 and not _MULTIPLIED.search(names[0]):
                dtypes |= dict.fromkeys(names, dtype)
    return dtypes


@jax.custom_vjp
def _rounded(rounded: jax.Array, weight: jax.Array) -> jax.Array:
    """Return `rounded`, whose gradient is the gradient of `weight`."""
    return rounded


_rounded.defvjp(
    lambda rounded, weight: (rounded, None),
    lambda _, gradient: (None, gradient.astype(jnp.float32)),
)

"""ImageNet normalisation of grey slices: the input convention of SAM 2's image encoder, on the host and in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import jax

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # red, green, blue
IMAGENET_STD = (0.229, 0.224, 0.225)

ArrayT = TypeVar("ArrayT", np.ndarray, "jax.Array")


def normalise(unit: ArrayT) -> ArrayT:
    """Normalise grey values to three channels with the mean and standard deviation of ImageNet.

    Args:
        unit: `[..., S, S]` in [0, 1], a NumPy or a JAX array.

    Returns:
        `[..., S, S, 3]` float32, an array of the same kind.
    """
    grey = unit.astype(np.float32, copy=False)[..., None]
    # Both have as many axes as `grey`, because JAX can be configured to reject operands of different rank.
    leading = tuple(range(unit.ndim))
    mean, std = (np.expand_dims(np.array(x, np.float32), leading) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (grey - mean) / std

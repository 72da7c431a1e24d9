"""Initializers: a table from path pattern to distribution, drawn with NumPy on the host.

Modules only hold structure; this file provides the initial values. Drawing on the host compiles nothing and gives the
same weights on every mesh. The distributions are those of SAM 2's modules, except that matrix products are scaled by
fan (Glorot).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from sam2_3dmed_jax.sam2.parameters import Weights

Initializer = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def glorot_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a matrix `[in, out]` or a convolution `[k, k, in, out]`."""
    window = math.prod(shape[:-2])
    bound = math.sqrt(6.0 / (window * (shape[-2] + shape[-1])))
    return rng.uniform(-bound, bound, shape)


def transposed_glorot_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a transposed convolution `[in, k, ..., out]` whose kernel is its stride: one input pixel per output."""
    bound = math.sqrt(6.0 / (shape[0] + shape[-1]))
    return rng.uniform(-bound, bound, shape)


def depthwise_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a depthwise convolution `[k, k, C]`."""
    return rng.normal(0.0, 1.0 / math.sqrt(shape[0] * shape[1]), shape)


def clipped_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw from a normal distribution with standard deviation 0.02, clipped at two standard deviations."""
    return np.clip(rng.normal(0.0, 0.02, shape), -0.04, 0.04)


def standard_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw from a normal distribution with standard deviation 1, as `torch.nn.Embedding`."""
    return rng.normal(0.0, 1.0, shape)


def constant(value: float) -> Initializer:
    """Return an initializer that fills with `value`."""
    return lambda rng, shape: np.full(shape, value)


# The first pattern that matches a path decides.
SAM2_INITIALIZERS: tuple[tuple[str, Initializer], ...] = (
    (r"bias$", constant(0.0)),
    (r"scale$", constant(1.0)),
    (r"gamma$", constant(1e-6)),
    (r"(pos_embed|pos_embed_window|maskmem_tpos_enc)$", clipped_normal),
    (r"(no_mem_embed|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial)$", clipped_normal),
    (r"(_tokens?|point_embeddings\.\d|not_a_point_embed|no_mask_embed|gaussian_matrix)$", standard_normal),
    (r"(output_upscaling\.\d|up\d)\.kernel$", transposed_glorot_uniform),
    (r"dwconv\.kernel$", depthwise_normal),
    (r"kernel$", glorot_uniform),
)


def initial_weights(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    seed: int,
    initializers: Sequence[tuple[str, Initializer]] = SAM2_INITIALIZERS,
) -> Weights:
    """Draw float32 weights for all paths; each depends only on the seed and its own path.

    Raises:
        KeyError: no pattern matches a path.
    """
    weights = {}
    for path, shape in shapes.items():
        initializer = next((draw for pattern, draw in initializers if re.search(pattern, path)), None)
        if initializer is None:
            raise KeyError(f"no initializer matches the parameter {path}")
        rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
        # `jax.numpy.asarray` would compile a program for each shape.
        weights[path] = jax.device_put(initializer(rng, tuple(shape.shape)).astype(np.float32))
    return weights

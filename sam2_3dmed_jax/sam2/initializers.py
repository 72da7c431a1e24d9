"""Initial weights as a table from path pattern to distribution, drawn by NumPy on the host.

A model's modules only hold its structure. Drawing on the host compiles nothing, and gives the same weights on any
mesh. The distributions are those of SAM 2's modules, but for products, which are scaled by fan (Glorot).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sam2_3dmed_jax.sam2.parameters import Weights

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def glorot(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform Glorot of a product `[in, out]` or a convolution `[k, k, in, out]`."""
    window = math.prod(shape[:-2])
    bound = math.sqrt(6.0 / (window * (shape[-2] + shape[-1])))
    return rng.uniform(-bound, bound, shape)


def transposed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A 2x2 transposed convolution `[in, 2, 2, out]`: each output pixel reads one input pixel."""
    bound = math.sqrt(6.0 / (shape[0] + shape[-1]))
    return rng.uniform(-bound, bound, shape)


def depthwise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A depthwise convolution `[k, k, C]`."""
    return rng.normal(0.0, 1.0 / math.sqrt(shape[0] * shape[1]), shape)


def small(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """SD 0.02, cut at two SD."""
    return np.clip(rng.normal(0.0, 0.02, shape), -0.04, 0.04)


def unit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """SD 1, as `torch.nn.Embedding`."""
    return rng.normal(0.0, 1.0, shape)


def constant(value: float) -> Draw:
    """The same value everywhere."""
    return lambda rng, shape: np.full(shape, value)


# The first pattern found in a path decides.
RULES: tuple[tuple[str, Draw], ...] = (
    (r"bias$", constant(0.0)),
    (r"scale$", constant(1.0)),
    (r"gamma$", constant(1e-6)),
    (r"(pos_embed|pos_embed_window|maskmem_tpos_enc)$", small),
    (r"(no_mem_embed|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial)$", small),
    (r"(_tokens?|point_embeddings\.\d|not_a_point_embed|no_mask_embed|gaussian_matrix)$", unit),
    (r"(output_upscaling\.\d|up\d)\.kernel$", transposed),
    (r"dwconv\.kernel$", depthwise),
    (r"kernel$", glorot),
)


def initial_weights(
    shapes: Mapping[str, jax.ShapeDtypeStruct], seed: int, rules: Sequence[tuple[str, Draw]] = RULES
) -> Weights:
    """Draw float32 weights for all paths; each depends on the seed and its own path only.

    Raises:
        KeyError: a path that no rule matches.
    """
    weights = {}
    for path, shape in shapes.items():
        draw = next((draw for pattern, draw in rules if re.search(pattern, path)), None)
        if draw is None:
            raise KeyError(f"no initial value is given for {path}")
        rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
        weights[path] = jnp.asarray(draw(rng, tuple(shape.shape)).astype(np.float32))
    return weights

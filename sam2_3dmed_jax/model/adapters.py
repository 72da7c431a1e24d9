"""Low-rank adapters (LoRA; Hu et al. 2021): the kernel W of a linear layer becomes `W + alpha / rank * A @ B`.

Pure functions on weights by path. A layer `L` has its kernel in `L.kernel` `[in, out]`, A in `L.lora_a` `[in, rank]`
and B in `L.lora_b` `[rank, out]`. B starts at zero, so an adapted model starts as the loaded one. Dropout is left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam2_3dmed_jax.config import LoraConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.sam2.initializers import constant, initial_weights
from sam2_3dmed_jax.sam2.parameters import Weights

_KERNEL, _A, _B = ".kernel", ".lora_a", ".lora_b"


def _inverse_root_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw A as the authors' implementation does: uniformly between -1 / sqrt(in) and 1 / sqrt(in)."""
    bound = shape[0] ** -0.5
    return rng.uniform(-bound, bound, shape)


INITIALIZERS = ((r"\.lora_a$", _inverse_root_uniform), (r"\.lora_b$", constant(0.0)))


def is_adapter(path: str) -> bool:
    """Return whether a path is of an adapter."""
    return path.endswith((_A, _B))


def adapter_shapes(
    weights: Mapping[str, Any], config: LoraConfig, left_out: Collection[str] = ()
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of adapters by path.

    Args:
        weights: of the model, or their shapes.
        config: the settings.
        left_out: paths of kernels without an adapter.

    Raises:
        UserError: settings that are not a rank, a factor or patterns of linear layers.
    """
    if config.rank == 0:
        return {}
    if config.rank < 0:
        raise UserError(f"training.lora.rank: {config.rank} is not a rank; give 0 (no adapters), 4, 8 or more")
    if not 0 < config.alpha < float("inf"):
        raise UserError(f"training.lora.alpha: {config.alpha:g} is not a positive number; give one, such as 16")
    linear = [path for path, value in weights.items() if path.endswith(_KERNEL) and len(value.shape) == 2]
    for pattern in config.modules:
        if not any(re.search(pattern, path) for path in linear):
            raise UserError(f"training.lora.modules: no linear layer matches '{pattern}'; correct it or leave it out")
    shapes = {}
    for path in linear:
        if path not in left_out and any(re.search(pattern, path) for pattern in config.modules):
            layer, (rows, columns) = path.removesuffix(_KERNEL), weights[path].shape
            shapes[layer + _A] = _float32(rows, config.rank)
            shapes[layer + _B] = _float32(config.rank, columns)
    if not shapes:
        raise UserError("training.lora.modules: no layer is left to adapt; give patterns of frozen linear layers")
    return shapes


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)  # type: ignore[no-untyped-call]


def initial_adapters(shapes: Mapping[str, jax.ShapeDtypeStruct], seed: int) -> Weights:
    """Return adapters with random A and B = 0; each depends only on the seed and its own path."""
    return initial_weights(shapes, seed, INITIALIZERS)


def adapted_kernels(paths: Iterable[str]) -> list[str]:
    """Return the paths of the kernels that the adapters among `paths` change."""
    return [path.removesuffix(_B) + _KERNEL for path in paths if path.endswith(_B)]


def effective_weights(weights: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Return the model's weights with the adapters added to their kernels, and without the adapters.

    Args:
        weights: of the model and its adapters, of JAX inside a compiled step or of NumPy on the host.
        scale: `LoraConfig.scale`.
    """
    merged = {path: value for path, value in weights.items() if not is_adapter(path)}
    for kernel in adapted_kernels(weights):
        layer = kernel.removesuffix(_KERNEL)
        merged[kernel] = adapted(weights[kernel], weights[layer + _A], weights[layer + _B], scale)
    return merged


def adapted(kernel: Any, a: Any, b: Any, scale: float) -> Any:
    """Return `kernel + scale * a @ b`, float32."""
    if isinstance(a, np.ndarray):
        # In float64, so that the rounded product is the same on machines that sum in another order.
        return np.asarray(kernel) + (scale * (a.astype(np.float64) @ b.astype(np.float64))).astype(np.float32)
    return kernel + scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

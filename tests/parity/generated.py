"""Weights, slices and stage inputs made by NumPy alone, keyed by name: the same bits for PyTorch, JAX and next year.

Only a bit generator's raw words are used, whose streams NumPy promises to keep (NEP 19; `Generator` methods may
change). Weights are non-degenerate: what training starts at zero, one or 1e-6 is moved, and objects are present.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

# What the official models start with stands beside each rule; a trained model has left those values. First match wins.
# (pattern, mean, standard deviation); all others are matrices, see `_rule`.
_RULES: tuple[tuple[str, float, float], ...] = (
    (r"\.(gamma|scale)$", 0.25, 0.15),  # ConvNeXt layer scale: 1e-6
    (r"bias$", 0.0, 0.05),  # 0
    (r"pos_embed\w*$", 0.0, 0.1),  # 0
    (r"gaussian_matrix$|positional_embedding$", 0.0, 1.0),
    (r"(point_embed\w*|not_a_point_embed|no_mask_embed|_tokens?)(\.\d)?\.weight$", 0.0, 1.0),
    # no_mem_embed, no_obj_ptr, maskmem_tpos_enc and the like, under both libraries' names: 0.02
    (r"(^|\.)(no_\w+|occlusion_\w+_parameter|maskmem_tpos_enc|memory_temporal_\w+)$", 0.0, 0.3),
)


def uniform(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Independent float32 numbers of mean 0 and variance 1, that depend on the name, the shape and the seed alone."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    words = np.random.PCG64(key).random_raw(int(np.prod(shape)))
    return (((words >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - 1) * np.float32(3**0.5)).reshape(shape)


def weight(name: str, shape: tuple[int, ...], seed: int, presence: float = 1.0) -> np.ndarray:
    """One tensor of a checkpoint; `presence` is the bias of the object score.

    Positive, so that objects are present: SAM 2 writes -1024 over masks where they are not, which would all be equal.
    """
    if re.search(r"pred_obj_score_head\.(layers\.2|proj_out)\.bias$", name):
        return np.full(shape, presence, np.float32)
    mean, spread = _rule(name, shape)
    return np.float32(mean) + np.float32(spread) * uniform(name, shape, seed)


def weights(shapes: Mapping[str, Sequence[int]], seed: int, presence: float = 1.0) -> dict[str, np.ndarray]:
    """A checkpoint with these names and shapes."""
    return {name: weight(name, tuple(shape), seed, presence) for name, shape in shapes.items()}


def _rule(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    for pattern, mean, spread in _RULES:
        if re.search(pattern, name):
            return mean, spread
    if len(shape) == 1:
        return 1.0, 0.1  # scales of norms: 1
    fan_in = int(np.prod(shape[1:]))
    if re.search(r"(output_upscaling\.[03]|upscale_conv[12])\.weight$", name):
        fan_in = shape[0]  # transposed convolutions are stored [in, out, 2, 2], and their stride equals their kernel
    # PyTorch's own initial spread, and gains that let the memory decide the mask: attention that picks among memories,
    # and its loud result. (With spread 1 / sqrt(fan_in) the reference differs from itself by 3e-4 when its input moves
    # by 3e-7, and by 1e-5 with these: a network in chaos cannot be compared.)
    gain = 1.0
    if re.search(r"cross_attn_image\.(q_proj|k_proj)\.weight$", name):
        gain = 2.8
    elif re.search(r"(q_proj|k_proj)\.weight$", name):
        gain = 2.0
    elif re.search(r"cross_attn_image\.(v_proj|o_proj|out_proj)\.weight$", name):
        gain = 3.0
    return 0.0, gain * (3 * fan_in) ** -0.5


def slices(depth: int, size: int, seed: int) -> np.ndarray:
    """Normalised slices, float32 `[depth, size, size, 3]`: blocks that drift from slice to slice, at three scales."""
    total = np.zeros((depth, size, size, 3), np.float32)
    for block, strength in ((size // 8, 0.8), (size // 32, 0.6), (1, 0.1)):
        cells = (size // block, size // block, 3)
        fixed = uniform(f"slices/{block}", (1, *cells), seed)
        own = uniform(f"slices/{block}/each", (depth, *cells), seed)
        pattern = np.float32(strength) * (np.float32(0.8) * fixed + np.float32(0.6) * own)
        total += np.repeat(np.repeat(pattern, block, axis=1), block, axis=2)
    return total


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes and bytes, in the order of names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name}{array.shape}{array.dtype}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()

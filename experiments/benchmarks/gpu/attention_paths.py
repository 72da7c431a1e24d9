"""Shapes and paths of attention on a GPU: our Triton kernel, plain XLA over all keys, and cuDNN through JAX.

The shapes are those of SAM 2 at 1024 px: memory attention with a full bank, with empty slots, and with several objects;
global attention and windows of the encoders. Each path has the signature of `sam2.flash_attention`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sam2_3dmed_jax.sam2 import wide_attention
from sam2_3dmed_jax.sam2.attention_choice import gpu_attention, local_capability

TRITON, WIDE, CUDNN = "triton", "wide", "cudnn"
ZERO = 1e-3  # of the largest array; see `relative_error`


class Shape(NamedTuple):
    """The operands of one attention."""

    rows: int  # B
    queries: int  # N
    keys: int  # M
    heads: int
    channels: int  # d, of queries and keys
    value_channels: int  # dv
    mask: str = ""  # valid keys: "": all, without a mask; "all", by a mask; "slots": 3 of 7; "one": a single key


MEMORY = (4096, 7 * 4096 + 64, 1, 256, 64)  # 7 memories and 16 pointers of 4 tokens each
SHAPES = {
    "memory, full bank": Shape(1, *MEMORY, "all"),
    "memory, 3 of 7 slots": Shape(1, *MEMORY, "slots"),
    "memory, 4 objects": Shape(4, *MEMORY, "slots"),
    "memory, 512 px": Shape(1, 1024, 7 * 1024 + 64, 1, 256, 64, "all"),
    "self-attention of memory attention": Shape(1, 4096, 4096, 1, 256, 256),
    "tiny, global": Shape(1, 4096, 4096, 4, 96, 96),
    "base_plus, global": Shape(1, 4096, 4096, 8, 56, 56),
    "large, global": Shape(1, 4096, 4096, 8, 72, 72),
    "tiny, windows": Shape(25, 196, 196, 4, 96, 96),
    "large, windows": Shape(16, 256, 256, 8, 72, 72),
    "large, small windows": Shape(1024, 64, 64, 2, 72, 72),
    "odd sizes, one valid key": Shape(2, 100, 333, 2, 72, 72, "one"),
}
SMOKE_SHAPES = {
    "memory": Shape(1, 64, 160, 1, 256, 64, "slots"),
    "odd sizes, one valid key": Shape(2, 20, 37, 2, 72, 72, "one"),
}


class Operands(NamedTuple):
    """Random operands of an attention, and the gradient of its result."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    valid: jax.Array | None
    gradient: jax.Array

    def float32(self) -> Operands:
        """Return the same numbers in float32."""
        q, k, v, gradient = (x.astype(jnp.float32) for x in (self.q, self.k, self.v, self.gradient))
        return Operands(q, k, v, self.valid, gradient)


def operands(shape: Shape, dtype: str) -> Operands:
    """Return operands of variance 1."""
    b, n, m, heads, d, dv, mask = shape
    rng = np.random.default_rng(0)
    sizes = (b, n, heads, d), (b, m, heads, d), (b, m, heads, dv), (b, n, heads, dv)
    q, k, v, gradient = (jnp.asarray(rng.standard_normal(size, np.float32), dtype) for size in sizes)
    valid = np.full((b, m), mask != "one")
    slot = m // 7
    if mask == "slots":
        valid[:, slot : 5 * slot] = False
    elif mask == "one":
        valid[:, m // 2] = True
    return Operands(q, k, v, jnp.asarray(valid) if mask else None, gradient)


@dataclass(frozen=True)
class Path:
    """One implementation; `backward` takes the operands, the results of `forward`, and the gradient."""

    forward: Callable[..., tuple[jax.Array, jax.Array]]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def path_of(name: str, **settings: Any) -> Path:
    """Return a path; off a GPU, Pallas interprets the kernel.

    Args:
        name: `TRITON`, `WIDE` or `CUDNN`.
        settings: of the kernel, `block` and `splits`.
    """
    if name == WIDE:
        return Path(wide_attention.forward, wide_attention.backward)
    if name == CUDNN:
        return Path(_cudnn_forward, _cudnn_backward)
    from sam2_3dmed_jax.sam2 import triton_attention

    settings |= {"capability": capability(), "interpret": not on_gpu()}
    return Path(
        functools.partial(triton_attention.forward, **settings),
        functools.partial(triton_attention.backward, **settings),
    )


def paths(dtype: str) -> dict[str, Path]:
    """Return the paths that a dtype can take, by name."""
    kernels = ((TRITON,) if default_path() == TRITON else ()) + ((CUDNN,) if local_capability() or not on_gpu() else ())
    return {name: path_of(name) for name in (WIDE, *(kernels if dtype == "bfloat16" else ()))}


def default_path() -> str:
    """Return the path that a model takes in bfloat16, if the kernel passes its self-check; off a GPU the kernel."""
    return gpu_attention(local_capability(), "bfloat16").path if on_gpu() else TRITON


def on_gpu() -> bool:
    """Return whether JAX runs on a GPU."""
    return jax.default_backend() == "gpu"


def capability() -> tuple[int, int]:
    """Return the CUDA compute capability of the device; without one, the capability of an H100."""
    return local_capability() or (9, 0)


def run_both(path: Path, given: Operands) -> tuple[jax.Array, ...]:
    """Return the attention and the gradients of q, k and v."""
    q, k, v, valid, gradient = given
    out, logsumexp = jax.jit(path.forward)(q, k, v, valid)
    return out, *jax.jit(path.backward)(q, k, v, valid, out, logsumexp, gradient)


def relative_error(found: Sequence[jax.Array], exact: Sequence[jax.Array]) -> float:
    """Return the largest error of several arrays, each relative to its largest number.

    With one valid key, the gradients of queries and keys are 0; an array that is nearly 0 counts by the largest one.
    """
    sizes = [float(jnp.abs(y).max()) for y in exact]
    scales = [size if size > ZERO * max(sizes) else max(sizes) for size in sizes]
    pairs = ((x.astype(jnp.float32), y.astype(jnp.float32)) for x, y in zip(found, exact, strict=True))
    return max(float(jnp.abs(x - y).max()) / scale for (x, y), scale in zip(pairs, scales, strict=True))


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Attend by cuDNN, which has no holes in its mask (valid keys go first) and no `dv` of its own (zeros)."""
    dv = v.shape[-1]
    v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, q.shape[-1] - dv)))
    lengths = None
    if valid is not None:
        order = jnp.argsort(~valid, axis=1, stable=True)[:, :, None, None]
        k, v = (jnp.take_along_axis(x, order, axis=1) for x in (k, v))
        lengths = valid.sum(axis=1, dtype=jnp.int32)
    library = "cudnn" if on_gpu() else "xla"
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation=library)[..., :dv]


def _cudnn_forward(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Return the attention; JAX does not return the logsumexp."""
    return _cudnn(q, k, v, valid), jnp.zeros((), jnp.float32)


def _cudnn_backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None,
    out: jax.Array,
    logsumexp: jax.Array,
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients; the forward pass runs again, since JAX keeps cuDNN's residuals to itself."""
    dq, dk, dv = jax.vjp(lambda q, k, v: _cudnn(q, k, v, valid), q, k, v)[1](gradient)
    return dq, dk, dv

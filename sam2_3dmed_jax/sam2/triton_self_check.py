"""Self-check of the GPU attention kernel: small attentions, forward and backward, against plain XLA in float32.

It takes about 1 ms of GPU time and covers each row of the table of blocks that the GPU uses, because a block that does
not fit the shared memory fails only when it is compiled or launched.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from sam2_3dmed_jax.sam2 import wide_attention

# Queries, keys, heads, channels, and channels of values: odd lengths, and keys enough for several splits.
SHAPES = ((130, 1100, 1, 256, 64), (130, 200, 1, 256, 256), (200, 200, 2, 72, 72))
# Relative to the largest value. The products of bfloat16 numbers have errors of 2^-9, and sums of them up to 5e-3.
TOLERANCE = 2e-2


def kernel_fault(capability: tuple[int, int], *, interpret: bool = False) -> str | None:
    """Run the kernel on the default device; return None if it is right, and what is wrong otherwise.

    Args:
        capability: CUDA compute capability of the device.
        interpret: run in Pallas' interpreter, on any device.
    """
    # This may be called while a program is traced. A new thread has no trace, mesh or other setting of its caller.
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            error = thread.submit(_largest_error, capability, interpret).result()
        except Exception as exception:  # whatever goes wrong, plain XLA still works
            lines = str(exception).splitlines() or [""]
            return f"{type(exception).__name__}: {lines[0][:160]}"
    return None if error < TOLERANCE else f"results differ by {error:.1e} of the largest value"


def _largest_error(capability: tuple[int, int], interpret: bool) -> float:
    """Return the largest error of results and gradients, relative to the largest value of each; NaN is infinite."""
    errors = jax.jit(functools.partial(_errors, capability=capability, interpret=interpret))(*map(_operands, SHAPES))
    return float(np.nan_to_num(np.asarray(errors), nan=np.inf).max())


def _operands(shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return queries, keys, values, the gradient of the result, and valid keys with empty blocks and holes."""
    n, m, heads, d, dv = shape
    rng = np.random.default_rng(0)
    shapes = ((2, n, heads, d), (2, m, heads, d), (2, m, heads, dv), (2, n, heads, dv))
    valid = rng.random((2, m)) < 0.5
    valid[:, m // 4 : m // 2] = False
    valid[1] = False
    return *(rng.normal(size=shape).astype(np.float32) for shape in shapes), valid


def _errors(*checks: tuple[jax.Array, ...], capability: tuple[int, int], interpret: bool) -> jax.Array:
    from sam2_3dmed_jax.sam2 import triton_attention

    errors = []
    for q, k, v, gradient, valid in checks:
        arrays = [x.astype(jnp.bfloat16) for x in (q, k, v, gradient)]
        results = []
        for module, dtype, settings in (
            (triton_attention, jnp.bfloat16, {"capability": capability, "interpret": interpret}),
            (wide_attention, jnp.float32, {}),
        ):
            *operands, of_out = (x.astype(dtype) for x in arrays)
            out, logsumexp = module.forward(*operands, valid, **settings)
            gradients = module.backward(*operands, valid, out, logsumexp, of_out, **settings)
            results.append((out, logsumexp, *gradients))
        for result, truth in zip(*results, strict=True):
            errors.append(jnp.abs(result.astype(jnp.float32) - truth).max() / jnp.abs(truth).max())
    return jnp.stack(errors)

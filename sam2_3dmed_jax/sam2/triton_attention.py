"""Flash attention for NVIDIA GPUs in Pallas through Triton (Dao 2023): softmax attention whose scores stay on the chip.

A program holds a block of queries and loops over the blocks of keys that hold a valid key, so that empty memory slots
take no time. Where the blocks of queries are too few to fill a GPU, several programs share the keys of a block, and
their results are joined. `backward` has one pass for keys and values and one for queries, and no atomic addition: its
results are the same in each run. Heads are read in place, without a transposition.

Import this module only where the kernels run: JAX deprecates Pallas-Triton, and a later version may not have it.
`attention_choice.py` decides when they run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from sam2_3dmed_jax.sam2.attention_steps import weighted_means
from sam2_3dmed_jax.sam2.triton_kernels import (
    MIN_SIDE,
    KeyMask,
    Sizes,
    backward_keys_kernel,
    backward_queries_kernel,
    channel_pieces,
    forward_kernel,
)


class Block(NamedTuple):
    """The work of one program."""

    queries: int
    keys: int
    warps: int
    stages: int  # of the software pipeline: blocks of the loop that are in shared memory at once


class Blocks(NamedTuple):
    """The blocks of the three kernels."""

    forward: Block
    backward_keys: Block
    backward_queries: Block


class Gpu(NamedTuple):
    """What the kernels need to know about a GPU."""

    shared_memory_kib: int  # that a program may use
    multiprocessors: int


# By compute capability: A100, A10 (RTX 3090), Jetson Orin, L4 (RTX 4090), H100, B200, B300, RTX 5090, GB10.
GPUS = {
    (8, 0): Gpu(163, 108),
    (8, 6): Gpu(99, 82),
    (8, 7): Gpu(163, 16),
    (8, 9): Gpu(99, 128),
    (9, 0): Gpu(227, 132),
    (10, 0): Gpu(227, 148),
    (10, 3): Gpu(227, 148),
    (12, 0): Gpu(99, 170),
    (12, 1): Gpu(99, 48),
}
OTHER_GPU = Gpu(99, 100)

# By the least shared memory in KiB, the most channels of queries and keys, and the most channels of values; the first
# row that fits is used. Per kernel, ptxas reports at most 60 bytes of spilled registers for an H100 and an A100, and
# 400 for an RTX 4090; an A100 spills 13 KB with 64 keys and 256 channels in `backward_keys`.
BLOCKS = (
    (163, 128, 128, Blocks(Block(128, 64, 8, 3), Block(64, 64, 4, 2), Block(64, 64, 4, 2))),
    (227, 256, 128, Blocks(Block(128, 64, 8, 2), Block(64, 64, 8, 2), Block(64, 64, 8, 2))),
    (163, 256, 128, Blocks(Block(128, 64, 8, 2), Block(64, 32, 8, 2), Block(64, 64, 8, 2))),
    (163, 256, 256, Blocks(Block(128, 32, 8, 2), Block(64, 32, 8, 1), Block(64, 32, 8, 2))),
    (99, 128, 128, Blocks(Block(128, 64, 8, 2), Block(64, 64, 4, 1), Block(64, 64, 4, 1))),
    (99, 256, 256, Blocks(Block(64, 32, 4, 2), Block(32, 32, 4, 1), Block(32, 32, 4, 2))),
)
MAX_SPLITS = 8
MIN_SPLIT_BLOCKS = 8  # blocks in the loop of a program; a shorter loop does not repay the joining of results

_shape_dtype: Callable[..., jax.ShapeDtypeStruct] = jax.ShapeDtypeStruct  # JAX does not annotate its constructor


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None,
    *,
    capability: tuple[int, int],
    block: Block | None = None,
    splits: int | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Compute softmax attention as `attention.attend` defines it.

    Args:
        q: `[B, N, heads, d]`, d at most 256.
        k: `[B, M, heads, d]`.
        v: `[B, M, heads, dv]`, dv at most 256.
        valid: bool `[B, M]`, or None if all keys are valid.
        capability: CUDA compute capability of the GPU.
        block: block of a program, or None for the one in `BLOCKS`.
        splits: programs that share the keys of a block of queries, or None to fill the GPU.
        interpret: run in Pallas' interpreter, slowly, on any platform.

    Returns:
        The attention `[B, N, heads, dv]` in `v`'s dtype, and the logsumexp of each query's scores, float32
        `[B, heads, N]`, for `backward`. A row without valid keys gets the mean of its values.
    """
    gpu = GPUS.get(capability, OTHER_GPU)
    block = block or _blocks(q, v, gpu).forward
    sizes = _sizes(q, k, v, block)
    sizes = sizes._replace(splits=splits or _splits(q, sizes.query_blocks, sizes.key_blocks, gpu))
    b, n, heads, d = q.shape
    out, logsumexp = _run(
        forward_kernel,
        "flash_attention_forward",
        sizes.query_blocks,
        (q, k, v),
        (((b, n, heads, v.shape[-1]), v.dtype), ((b, heads, n), jnp.dtype(jnp.float32))),
        block=block,
        sizes=sizes,
        channels=d + v.shape[-1],
        valid=valid,
        interpret=interpret,
    )
    if sizes.splits == 1:
        return out[0], logsumexp[0]
    maximum = logsumexp.max(axis=0, keepdims=True)
    weights = jnp.exp(logsumexp - maximum)
    total = weights.sum(axis=0, keepdims=True)
    shares = jnp.swapaxes(weights / total, 2, 3)[..., None]  # [splits, B, N, heads, 1]
    return (out * shares).sum(axis=0).astype(v.dtype), (maximum + jnp.log(total))[0]


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None,
    out: jax.Array,
    logsumexp: jax.Array,
    gradient: jax.Array,
    *,
    capability: tuple[int, int],
    block: Block | None = None,
    splits: int | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the gradients of `forward` with respect to `q`, `k` and `v` (Dao et al. 2022, appendix B.2).

    Args:
        q: `[B, N, heads, d]`.
        k: `[B, M, heads, d]`.
        v: `[B, M, heads, dv]`.
        valid: bool `[B, M]`, or None.
        out: `[B, N, heads, dv]`, result of `forward`.
        logsumexp: `[B, heads, N]`, result of `forward`.
        gradient: gradient of the loss with respect to `out`, of the same shape.
        capability: CUDA compute capability of the GPU.
        block: block of a program of both kernels, or None for those in `BLOCKS`.
        splits: programs that share the loop of a block, or None to fill the GPU.
        interpret: run in Pallas' interpreter, slowly, on any platform.

    Returns:
        Gradients with the shapes and dtypes of `q`, `k` and `v`.
    """
    gpu = GPUS.get(capability, OTHER_GPU)
    operands = q, k, v, gradient.astype(v.dtype), logsumexp, weighted_means(out, gradient)

    blocks = _blocks(q, v, gpu)
    run = functools.partial(_run, valid=valid, interpret=interpret)

    of_keys = block or blocks.backward_keys
    sizes = _sizes(q, k, v, of_keys)
    sizes = sizes._replace(splits=splits or _splits(q, sizes.key_blocks, sizes.query_blocks, gpu))
    dk, dv = run(
        backward_keys_kernel,
        "flash_attention_backward_keys",
        sizes.key_blocks,
        operands,
        ((k.shape, k.dtype), (v.shape, v.dtype)),
        block=of_keys,
        sizes=sizes,
        channels=2 * (q.shape[-1] + v.shape[-1]),
    )

    of_queries = block or blocks.backward_queries
    sizes = _sizes(q, k, v, of_queries)
    sizes = sizes._replace(splits=splits or _splits(q, sizes.query_blocks, sizes.key_blocks, gpu))
    (dq,) = run(
        backward_queries_kernel,
        "flash_attention_backward_queries",
        sizes.query_blocks,
        operands,
        ((q.shape, q.dtype),),
        block=of_queries,
        sizes=sizes,
        channels=q.shape[-1],  # the pass for keys has counted the other two products
    )
    return dq.sum(0).astype(q.dtype), dk.sum(0).astype(k.dtype), dv.sum(0).astype(v.dtype)


def _run(
    kernel: Callable[..., None],
    name: str,
    held_blocks: int,
    operands: Sequence[jax.Array],
    outputs: Sequence[tuple[tuple[int, ...], jnp.dtype]],
    *,
    block: Block,
    sizes: Sizes,
    channels: int,
    valid: jax.Array | None,
    interpret: bool,
) -> list[jax.Array]:
    """Run a kernel with one program per row, head, block that it holds, and split.

    Args:
        kernel: function of `triton_kernels.py`.
        name: name of the kernel.
        held_blocks: number of blocks of queries or keys that the programs of a row and head hold.
        operands: arrays `[B, T, heads, c]` or `[B, heads, T]`.
        outputs: shapes and dtypes of the results, without splits.
        block: the work of a program.
        sizes: sizes of the attention and its blocks.
        channels: channels that each query and key multiply, without what `backward` computes again.
        valid: bool `[B, M]`, or None.
        interpret: run in Pallas' interpreter.

    Returns:
        The results with a leading axis of splits, in float32 where there are several.
    """
    b, heads = operands[0].shape[0], operands[0].shape[2]
    splits, scores = sizes.splits, b * heads * sizes.queries * sizes.keys
    mask = None if valid is None else _key_mask(valid, sizes)
    of_mask = mask and KeyMask(*(pl.BlockSpec((None, x.shape[1]), lambda i, b, h: (b, 0)) for x in mask))
    results: list[jax.Array] = pl.pallas_call(
        functools.partial(kernel, sizes=sizes),
        name=name,
        grid=(held_blocks * splits, b, heads),
        in_specs=[of_mask, *(_row_and_head(x.shape) for x in operands)],
        out_specs=[_row_and_head(shape, splits) for shape, _ in outputs],
        out_shape=[_shape_dtype((splits, *shape), dtype if splits == 1 else jnp.float32) for shape, dtype in outputs],
        cost_estimate=pl.CostEstimate(
            flops=2 * scores * channels, transcendentals=scores, bytes_accessed=sum(x.nbytes for x in operands)
        ),
        compiler_params=plgpu.CompilerParams(num_warps=block.warps, num_stages=block.stages),
        interpret=interpret,
    )(mask, *operands)
    return results


def _row_and_head(shape: tuple[int, ...], splits: int | None = None) -> pl.BlockSpec:
    """Return the tokens of a row and head as a block, of an array with a leading axis of splits if they are given.

    `shape` is `[B, T, heads, c]` or `[B, heads, T]`, without splits. The block has all pieces of channels, also where
    they reach beyond `c`.
    """
    if len(shape) == 3:
        block: tuple[int | None, ...] = (None, None, shape[2])
    else:
        first, width = channel_pieces(shape[3])[-1]
        block = (None, shape[1], None, first + width)

    def index(i: jax.Array, b: jax.Array, h: jax.Array) -> tuple[jax.Array | int, ...]:
        split = () if splits is None else (lax.rem(i, splits),)
        return (*split, b, h, 0) if len(shape) == 3 else (*split, b, 0, h, 0)

    return pl.BlockSpec(block if splits is None else (None, *block), index)


def _key_mask(valid: jax.Array, sizes: Sizes) -> KeyMask:
    """Return the valid keys `[B, M]` and the list of the blocks that the kernels need."""
    blocks = sizes.key_blocks
    padded = jnp.pad(valid, ((0, 0), (0, blocks * sizes.block_keys - sizes.keys)))
    has_keys = padded.reshape(-1, blocks, sizes.block_keys).any(axis=2)
    # Sums over all pairs of blocks, because a GPU needs several kernels for a cumulative sum or a sort.
    number = jnp.arange(blocks, dtype=jnp.int32)
    counts = (has_keys[:, None, :] & (number[None, :] <= number[:, None])[None]).sum(axis=2, dtype=jnp.int32)
    numbers = (counts[:, None, :] <= number[None, :, None]).sum(axis=2, dtype=jnp.int32)
    return KeyMask(valid.astype(jnp.int8), counts, numbers)


def _sizes(q: jax.Array, k: jax.Array, v: jax.Array, block: Block) -> Sizes:
    """Return the sizes of an attention; a block is not larger than the tokens need."""
    n, m = q.shape[1], k.shape[1]
    queries, keys = (
        min(most, max(MIN_SIDE, pl.next_power_of_2(length)))
        for most, length in zip((block.queries, block.keys), (n, m), strict=True)
    )
    return Sizes(n, m, q.shape[-1], v.shape[-1], queries, keys, splits=1)


def _blocks(q: jax.Array, v: jax.Array, gpu: Gpu) -> Blocks:
    """Return the blocks of `BLOCKS` that fit a GPU."""
    return next(
        blocks
        for memory, d, dv, blocks in BLOCKS
        if memory <= gpu.shared_memory_kib and q.shape[-1] <= d and v.shape[-1] <= dv
    )


def _splits(q: jax.Array, held_blocks: int, walked_blocks: int, gpu: Gpu) -> int:
    """Return the number of programs that share the loop of a block: two per multiprocessor, if loops stay long."""
    programs = q.shape[0] * q.shape[2] * held_blocks
    return max(1, min(MAX_SPLITS, walked_blocks // MIN_SPLIT_BLOCKS, 2 * gpu.multiprocessors // programs))

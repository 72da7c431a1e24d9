"""Pallas-Triton kernels of flash attention: what one program computes for a block of queries or keys on a GPU.

Triton's arrays have powers of two as sides, so channels are cut into pieces that are, such as 64 and 32 for 96. An
array beyond its last row or channel is masked, and loads as zeros. Exponents have base 2, which the hardware computes.
`triton_attention.py` defines the grid, whose axes are (blocks x splits, rows, heads).
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from sam2_3dmed_jax.sam2.attention_steps import MASKED
from sam2_3dmed_jax.sam2.layers import precision_of

LOG2_E = math.log2(math.e)
MIN_SIDE = 16  # the smallest side of a product of matrices

Ref = Any  # a Pallas reference to an array; Pallas does not annotate its type
Pieces = tuple[jax.Array, ...]  # a block `[rows, channels]`, cut along its channels


class Sizes(NamedTuple):
    """Static sizes of an attention and of its blocks."""

    queries: int
    keys: int
    channels: int  # d
    value_channels: int  # dv
    block_queries: int
    block_keys: int
    splits: int  # programs that share the loop of one block

    @property
    def scale(self) -> float:
        """The factor of the scores."""
        return 1.0 / math.sqrt(self.channels)

    @property
    def key_blocks(self) -> int:
        """The number of blocks of keys."""
        return pl.cdiv(self.keys, self.block_keys)

    @property
    def query_blocks(self) -> int:
        """The number of blocks of queries."""
        return pl.cdiv(self.queries, self.block_queries)


class KeyMask(NamedTuple):
    """The valid keys, and the blocks that have any; arrays of all rows, or in a kernel references to one row."""

    valid: Ref  # int8 [B, M]
    counts: Ref  # int32 [B, blocks]: the number of blocks with valid keys up to each block
    numbers: Ref  # int32 [B, blocks]: the blocks with valid keys, in front; the rest is undefined


def channel_pieces(channels: int) -> list[tuple[int, int]]:
    """Return (first channel, width) of pieces with powers of two as widths; the last may reach beyond the channels."""
    padded = pl.cdiv(channels, MIN_SIDE) * MIN_SIDE
    pieces, first = [], 0
    while first < padded:
        width = 1 << ((padded - first).bit_length() - 1)
        pieces.append((first, width))
        first += width
    return pieces


def forward_kernel(
    mask: KeyMask | None, q_ref: Ref, k_ref: Ref, v_ref: Ref,
    out_ref: Ref, logsumexp_ref: Ref,
    *,
    sizes: Sizes,
) -> None:  # fmt: skip
    """Attend from a block of queries to this program's share of the keys."""
    block, split = _block_and_split(sizes)
    queries = block * sizes.block_queries
    q = _load(q_ref, queries, sizes.block_queries, sizes.channels)
    first, last = _share(_key_block_count(mask, sizes), split, sizes.splits)

    def add_keys(
        number: jax.Array, softmax: tuple[jax.Array, jax.Array, Pieces]
    ) -> tuple[jax.Array, jax.Array, Pieces]:
        maximum, total, sums = softmax
        keys = _first_key(mask, number, sizes)
        k, v = _load_keys(k_ref, v_ref, keys, sizes)
        scores = _scaled_scores(q, k, sizes)
        valid, fill = _valid_and_fill(mask, keys, sizes)
        if valid is not None:
            scores = jnp.where(valid[None, :], scores, fill[None, :])
        new_maximum = jnp.maximum(maximum, scores.max(axis=1))
        weights = jnp.exp2(scores - new_maximum[:, None])
        fade = jnp.exp2(maximum - new_maximum)
        sums = _add_products(tuple(fade[:, None] * piece for piece in sums), weights, v)
        return new_maximum, fade * total + weights.sum(axis=1), sums

    start = (
        jnp.full((sizes.block_queries,), MASKED, jnp.float32),
        jnp.zeros((sizes.block_queries,), jnp.float32),
        _zeros(sizes.block_queries, sizes.value_channels),
    )
    maximum, total, sums = lax.fori_loop(first, last, add_keys, start)
    total = jnp.where(total > 0, total, 1.0)  # a program without keys has no weight when the splits are joined
    _store(out_ref, tuple(piece / total[:, None] for piece in sums), queries, sizes.value_channels)
    plgpu.store(
        logsumexp_ref.at[pl.ds(queries, sizes.block_queries)],
        maximum / LOG2_E + jnp.log(total),
        mask=_rows_inside(logsumexp_ref, queries, sizes.block_queries),
    )


def backward_keys_kernel(
    mask: KeyMask | None, q_ref: Ref, k_ref: Ref, v_ref: Ref, gradient_ref: Ref, logsumexp_ref: Ref, mean_ref: Ref,
    dk_ref: Ref, dv_ref: Ref,
    *,
    sizes: Sizes,
) -> None:  # fmt: skip
    """Compute the gradients of a block of keys and values from this program's share of the queries.

    `mean_ref` has the `weighted_means` of the gradient. A block without valid keys gets zeros at once.
    """
    block, split = _block_and_split(sizes)
    keys = block * sizes.block_keys
    k, v = _load_keys(k_ref, v_ref, keys, sizes)
    valid, fill = _valid_and_fill(mask, keys, sizes)
    first, last = _share(sizes.query_blocks, split, sizes.splits)
    if mask is not None:
        before = jnp.where(block > 0, mask.counts[jnp.maximum(block - 1, 0)], 0)
        has_keys = (mask.counts[block] > before) | ~_any_valid(mask, sizes)
        last = jnp.where(has_keys, last, first)

    def add_queries(number: jax.Array, gradients: tuple[Pieces, Pieces]) -> tuple[Pieces, Pieces]:
        dk, dv = gradients
        queries = number * sizes.block_queries
        q, gradient = _load_queries(q_ref, gradient_ref, queries, sizes)
        logsumexp, mean = _load_numbers((logsumexp_ref, mean_ref), queries, sizes.block_queries)
        scores = _scaled_scores(k, q, sizes)  # [keys, queries]
        if valid is not None:
            scores = jnp.where(valid[:, None], scores, fill[:, None])
        weights = jnp.exp2(scores - logsumexp[None, :] * LOG2_E)
        score_gradient = weights * (_scores(v, gradient) - mean[None, :])
        if valid is not None:
            score_gradient = jnp.where(valid[:, None], score_gradient, 0.0)
        return _add_products(dk, score_gradient, q), _add_products(dv, weights, gradient)

    start = _zeros(sizes.block_keys, sizes.channels), _zeros(sizes.block_keys, sizes.value_channels)
    dk, dv = lax.fori_loop(first, last, add_queries, start)
    _store(dk_ref, tuple(piece * sizes.scale for piece in dk), keys, sizes.channels)
    _store(dv_ref, dv, keys, sizes.value_channels)


def backward_queries_kernel(
    mask: KeyMask | None, q_ref: Ref, k_ref: Ref, v_ref: Ref, gradient_ref: Ref, logsumexp_ref: Ref, mean_ref: Ref,
    dq_ref: Ref,
    *,
    sizes: Sizes,
) -> None:  # fmt: skip
    """Compute the gradients of a block of queries from this program's share of the keys."""
    block, split = _block_and_split(sizes)
    queries = block * sizes.block_queries
    q, gradient = _load_queries(q_ref, gradient_ref, queries, sizes)
    logsumexp, mean = _load_numbers((logsumexp_ref, mean_ref), queries, sizes.block_queries)
    first, last = _share(_key_block_count(mask, sizes), split, sizes.splits)

    def add_keys(number: jax.Array, dq: Pieces) -> Pieces:
        keys = _first_key(mask, number, sizes)
        k, v = _load_keys(k_ref, v_ref, keys, sizes)
        weights = jnp.exp2(_scaled_scores(q, k, sizes) - logsumexp[:, None] * LOG2_E)
        score_gradient = weights * (_scores(gradient, v) - mean[:, None])
        valid, _ = _valid_and_fill(mask, keys, sizes)
        if valid is not None:
            score_gradient = jnp.where(valid[None, :], score_gradient, 0.0)
        return _add_products(dq, score_gradient, k)

    dq = lax.fori_loop(first, last, add_keys, _zeros(sizes.block_queries, sizes.channels))
    _store(dq_ref, tuple(piece * sizes.scale for piece in dq), queries, sizes.channels)


def _block_and_split(sizes: Sizes) -> tuple[jax.Array, jax.Array]:
    program = pl.program_id(0)
    return lax.div(program, sizes.splits), lax.rem(program, sizes.splits)


def _share(count: jax.Array | int, split: jax.Array, splits: int) -> tuple[jax.Array, jax.Array]:
    """Return the first and past the last of `count` blocks that a split takes."""
    return lax.div(count * split, splits), lax.div(count * (split + 1), splits)


def _any_valid(mask: KeyMask, sizes: Sizes) -> jax.Array:
    any_valid: jax.Array = mask.counts[sizes.key_blocks - 1] > 0
    return any_valid


def _key_block_count(mask: KeyMask | None, sizes: Sizes) -> jax.Array | int:
    """Return the number of blocks to attend to: those with valid keys, or all in a row without any."""
    if mask is None:
        return sizes.key_blocks
    return jnp.where(_any_valid(mask, sizes), mask.counts[sizes.key_blocks - 1], sizes.key_blocks)


def _first_key(mask: KeyMask | None, number: jax.Array, sizes: Sizes) -> jax.Array:
    """Return the first key of the block at a place in the list of blocks to attend to."""
    if mask is not None:
        number = jnp.where(_any_valid(mask, sizes), mask.numbers[number], number)
    return number * sizes.block_keys


def _valid_and_fill(mask: KeyMask | None, first: jax.Array, sizes: Sizes) -> tuple[jax.Array | None, jax.Array]:
    """Return which keys of a block are valid, None for all, and the score of the others, as `fill_of_keys`."""
    size = sizes.block_keys
    fill = jnp.full((size,), MASKED, jnp.float32)
    inside = None if sizes.keys % size == 0 else first + jnp.arange(size) < sizes.keys
    if mask is None:
        return inside, fill
    (valid,) = _load_numbers((mask.valid,), first, size)
    fill = jnp.where(_any_valid(mask, sizes), fill, 0.0)
    return valid != 0, fill if inside is None else jnp.where(inside, fill, MASKED)


def _scaled_scores(x: Pieces, y: Pieces, sizes: Sizes) -> jax.Array:
    """Return the scores of two blocks, in units of the logarithm of 2."""
    return _scores(x, y) * (sizes.scale * LOG2_E)


def _scores(x: Pieces, y: Pieces) -> jax.Array:
    """Return `x y^T` of two blocks, float32."""
    products = [_product(left, right.T) for left, right in zip(x, y, strict=True)]
    return functools.reduce(jnp.add, products)


def _add_products(sums: Pieces, x: jax.Array, y: Pieces) -> Pieces:
    """Return `sums + x y`."""
    return tuple(piece + _product(x.astype(right.dtype), right) for piece, right in zip(sums, y, strict=True))


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    dimensions = (((1,), (0,)), ((), ()))
    return lax.dot_general(x, y, dimensions, precision=precision_of(y.dtype), preferred_element_type=jnp.float32)


def _zeros(rows: int, channels: int) -> Pieces:
    return tuple(jnp.zeros((rows, width), jnp.float32) for _, width in channel_pieces(channels))


def _load_queries(q_ref: Ref, gradient_ref: Ref, first: jax.Array, sizes: Sizes) -> tuple[Pieces, Pieces]:
    rows = sizes.block_queries
    return _load(q_ref, first, rows, sizes.channels), _load(gradient_ref, first, rows, sizes.value_channels)


def _load_keys(k_ref: Ref, v_ref: Ref, first: jax.Array, sizes: Sizes) -> tuple[Pieces, Pieces]:
    rows = sizes.block_keys
    return _load(k_ref, first, rows, sizes.channels), _load(v_ref, first, rows, sizes.value_channels)


def _load(ref: Ref, first: jax.Array, rows: int, channels: int) -> Pieces:
    """Load rows of `ref [length, channels]`, from `first` on."""
    return tuple(
        _load_masked(ref.at[pl.ds(first, rows), pl.ds(start, width)], _inside(ref, first, rows, start, width, channels))
        for start, width in channel_pieces(channels)
    )


def _load_numbers(refs: tuple[Ref, ...], first: jax.Array, count: int) -> list[jax.Array]:
    """Load `count` numbers of each `ref [length]`, from `first` on."""
    return [_load_masked(ref.at[pl.ds(first, count)], _rows_inside(ref, first, count)) for ref in refs]


def _load_masked(ref: Ref, inside: jax.Array | None) -> jax.Array:
    """Load an array; elements that are not inside of it are zeros."""
    loaded: jax.Array = plgpu.load(ref) if inside is None else plgpu.load(ref, mask=inside, other=0)
    return loaded


def _store(ref: Ref, pieces: Pieces, first: jax.Array, channels: int) -> None:
    """Store rows of `ref [length, channels]`, from `first` on, in its dtype."""
    for piece, (start, width) in zip(pieces, channel_pieces(channels), strict=True):
        rows = piece.shape[0]
        inside = _inside(ref, first, rows, start, width, channels)
        plgpu.store(ref.at[pl.ds(first, rows), pl.ds(start, width)], piece.astype(ref.dtype), mask=inside)


def _inside(ref: Ref, first: jax.Array, rows: int, start: int, width: int, channels: int) -> jax.Array | None:
    """Return which elements of a block are inside of the array, bool `[rows, width]`, or None if all are."""
    inside = _rows_inside(ref, first, rows)
    if inside is not None:
        inside = jnp.broadcast_to(inside[:, None], (rows, width))
    if start + width > channels:
        columns = jnp.broadcast_to((start + jnp.arange(width) < channels)[None, :], (rows, width))
        inside = columns if inside is None else inside & columns
    return inside


def _rows_inside(ref: Ref, first: jax.Array, rows: int) -> jax.Array | None:
    return None if ref.shape[0] % rows == 0 else first + jnp.arange(rows) < ref.shape[0]

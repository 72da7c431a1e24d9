"""Blocks of slices that one call of `propagate_block` propagates, and their lengths, of which each is a compilation.

On CPU and TPU a step without active rows costs nothing, so that all blocks have `BLOCK` steps. On GPUs it costs as much
as any other, because a condition would make the host wait for the device in each step. There, blocks that are not full
are cut into short ones: a path ends with 1.5 steps of padding on average, in place of 7.5.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from sam2_3dmed_jax.inference.feature_store import BLOCK

SHORT_BLOCK = 4  # a divisor of `BLOCK`


class Block(NamedTuple):
    """The steps `begin` to `end` of a path, padded to `length` steps."""

    begin: int
    end: int
    length: int


def blocks_of_path(steps: int, size: int) -> list[Block]:
    """Return the blocks of a path, of at most `size` steps each; `size` is at most `BLOCK`."""
    blocks = []
    for begin in range(0, steps, size):
        end = min(begin + size, steps)
        short = end - begin <= BLOCK - SHORT_BLOCK and padding_is_computed()
        length = SHORT_BLOCK if short else BLOCK
        blocks += [Block(start, min(start + length, end), length) for start in range(begin, end, length)]
    return blocks


def lengths_of_blocks(size: int) -> tuple[int, ...]:
    """Return the lengths of all blocks of paths, see `blocks_of_path`."""
    if not padding_is_computed():
        return (BLOCK,)
    return (SHORT_BLOCK,) if size <= BLOCK - SHORT_BLOCK else (SHORT_BLOCK, BLOCK)


def padding_is_computed() -> bool:
    """Return whether steps without active rows are computed on this platform (`propagate_block`)."""
    return jax.default_backend() == "gpu"

"""Padding of arrays to few distinct sizes, so that similar volumes and prompts share compiled programs."""

from __future__ import annotations

import numpy as np


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least `n`."""
    return 1 << max(n - 1, 0).bit_length()


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Return `array [n, ...]` with zeros appended to `[rows, ...]`; `rows` is at least n."""
    padded = np.zeros((rows, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded

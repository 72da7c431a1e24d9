"""Inputs of the single stages, two objects each, made by NumPy. Outputs are named dictionaries, channels last."""

from __future__ import annotations

import numpy as np

from tests.parity.generated import slices, uniform

Stages = dict[str, np.ndarray]

MEMORIES, POINTERS = 3, 5  # memories of a slice, and pointers of 4 tokens each


def stage_inputs(size: int, seed: int) -> Stages:
    """Inputs at slice size `size`; object 2 of the memory encoder is absent from its slice."""
    side, k, c, m = size // 16, 2, 256, 64

    def noise(name: str, *shape: int) -> np.ndarray:
        return uniform(f"stage/{name}", shape, seed)

    tokens = MEMORIES * side * side + POINTERS * (c // m)
    return {
        "images": slices(1, size, seed),
        "embedding": noise("embedding", k, side, side, c),
        "stride8": noise("stride8", k, 2 * side, 2 * side, c // 4),
        "stride4": noise("stride4", k, 4 * side, 4 * side, c // 8),
        "coords": np.float32(size) * np.array([[[0.3, 0.4], [0.8, 0.1]], [[0.2, 0.2], [0.6, 0.9]]], np.float32),
        "labels": np.array([[1, 0], [2, 3]], np.int32),
        "box": np.float32(size) * np.array([[0.3, 0.4, 0.8, 0.9], [0.1, 0.2, 0.6, 0.9]], np.float32),
        "mask": 4 * noise("mask", k, 4 * side, 4 * side),
        "score": np.array([2.0, -1.0], np.float32),
        "memory": noise("memory", k, MEMORIES * side * side, m),
        "pointers": noise("pointers", k, POINTERS * (c // m), m),
        "memory position": noise("memory position", k, tokens, m),
    }

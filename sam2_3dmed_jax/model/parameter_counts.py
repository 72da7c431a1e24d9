"""Numbers of tensors and parameters of a model, by module."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

# From the start of a parameter's path to the name of its module.
MODULES = {
    "image_encoder.trunk.": "image encoder: Hiera trunk",
    "image_encoder.neck.": "image encoder: neck",
    "memory_attention.": "memory attention",
    "memory_encoder.": "memory encoder",
    "sam_prompt_encoder.": "prompt encoder",
    "sam_mask_decoder.": "mask decoder",
    "slice_position.": "slice position (SRPP)",
    "boundary.": "boundary (BD)",
    "stem.": "U-Net: stem",
    "encoder.": "U-Net: encoder",
    "decoder.": "U-Net: decoder",
}
MEMORY_BANK = "memory bank"  # all other parameters: embeddings and object pointers at the top level of SAM 2


class ParameterCount(TypedDict):
    """The size of a module."""

    tensors: int
    parameters: int


def count_parameters(shapes: Mapping[str, Sequence[int]]) -> dict[str, ParameterCount]:
    """Return the size of each module from the shapes of weights by path, in the order of the paths."""
    counts: dict[str, ParameterCount] = {}
    for path, shape in shapes.items():
        module = next((name for start, name in MODULES.items() if path.startswith(start)), MEMORY_BANK)
        count = counts.setdefault(module, {"tensors": 0, "parameters": 0})
        count["tensors"] += 1
        count["parameters"] += math.prod(shape)
    return counts

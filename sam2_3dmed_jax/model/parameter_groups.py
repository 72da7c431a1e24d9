"""The parts of a model by the first word of a parameter's path, and how many parameters each has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

PARTS = {
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
BANK = "memory bank"  # embeddings, pointers and the rest at the top


def sizes_of_parts(shapes: Mapping[str, Sequence[int]]) -> dict[str, dict[str, int]]:
    """{part: {"tensors", "parameters"}} from the shapes of weights by path, in their order."""
    parts: dict[str, dict[str, int]] = {}
    for name, shape in shapes.items():
        part = next((text for start, text in PARTS.items() if name.startswith(start)), BANK)
        entry = parts.setdefault(part, {"tensors": 0, "parameters": 0})
        entry["tensors"] += 1
        entry["parameters"] += math.prod(shape)
    return parts

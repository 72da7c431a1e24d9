"""Recognise a checkpoint's layout and preset from the names and shapes of its tensors, and nothing else.

A native checkpoint says what it is, and is held to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.model.sam2_3dmed import abstract_model
from sam2_3dmed_jax.sam2.presets import PRESETS, preset_config
from weights_conversion.mapping import Layout, LayoutMap, Shapes, layout_map
from weights_conversion.source import FLOATS, Source, Tensor


@dataclass(frozen=True)
class Fit:
    """A preset in a layout, and how a checkpoint differs from it."""

    preset: str
    mapping: LayoutMap
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]  # each with the shapes expected and found
    mistyped: tuple[str, ...]

    @property
    def discrepancies(self) -> int:
        """How many tensors do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.misshaped) + len(self.mistyped)

    @property
    def text(self) -> str:
        """All discrepancies by name."""
        parts = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.misshaped,
            "of another type": self.mistyped,
        }
        return "; ".join(f"{len(names)} {what}: {', '.join(names)}" for what, names in parts.items() if names)


@cache
def native_shapes(config: ModelConfig) -> Shapes:
    """The shapes of a model's parameters by name."""
    return {name: tuple(leaf.shape) for name, leaf in abstract_model(config)[1].items()}


@cache
def _expected(config: ModelConfig, layout: Layout) -> tuple[LayoutMap, Shapes]:
    shapes = native_shapes(config)
    mapping = layout_map(layout, shapes)
    return mapping, mapping.foreign_shapes(shapes)


def fit(tensors: Mapping[str, Tensor], config: ModelConfig, layout: Layout) -> Fit:
    """Compare a checkpoint with a model in a layout; reads no values."""
    mapping, expected = _expected(config, layout)
    both = [name for name in expected if name in tensors]
    return Fit(
        config.preset,
        mapping,
        tuple(name for name in expected if name not in tensors),
        tuple(name for name in tensors if name not in expected),
        tuple(
            f"{name} (expected {list(expected[name])}, found {list(tensors[name].shape)})"
            for name in both
            if tensors[name].shape != expected[name]
        ),
        tuple(
            f"{name} (expected float32, float16 or bfloat16, found {tensors[name].dtype})"
            for name in both
            if tensors[name].dtype not in FLOATS
        ),
    )


def best_fit(tensors: Mapping[str, Tensor], preset: str | None = None) -> Fit:
    """The preset and foreign layout that fit best: exactly, or with the fewest discrepancies.

    Args:
        tensors: of a Meta or transformers checkpoint.
        preset: only this one, in the layout that fits best; None: any.
    """
    presets = [preset] if preset else sorted(PRESETS, key=lambda name: _unlikeness(tensors, name))
    best: Fit | None = None
    for name in presets:
        for layout in _likely_layouts(tensors):
            found = fit(tensors, plain(name), layout)
            if best is None or found.discrepancies < best.discrepancies:
                best = found
        if best is not None and not best.discrepancies:
            break
    assert best is not None
    return best


def recognise(source: Source, preset: str | None = None) -> tuple[ModelConfig, Fit]:
    """What model a checkpoint holds, and how it differs from it.

    Args:
        source: the opened checkpoint.
        preset: hold it to this one; None: what it says of itself, or what fits best.

    Raises:
        UserError: there is no such preset.
    """
    if preset:
        preset_config(preset)
    if source.info:
        config = replace(source.info.model, preset=preset or source.info.model.preset)
        return config, fit(source.tensors, config, "native")
    found = best_fit(source.tensors, preset)
    own_size = PRESETS[found.preset].image_size
    return plain(found.preset, None if source.image_size == own_size else source.image_size), found


def plain(preset: str, image_size: int | None = None) -> ModelConfig:
    """A preset's SAM 2, without SRPP and BD."""
    return ModelConfig(preset, image_size, srpp=False, bd=False)


def _likely_layouts(tensors: Mapping[str, Tensor]) -> tuple[Layout, ...]:
    return (
        ("transformers", "meta")
        if any(name.startswith("vision_encoder.") for name in tensors)
        else ("meta", "transformers")
    )


def _unlikeness(tensors: Mapping[str, Tensor], preset: str) -> tuple[int, bool]:
    """Orders presets, so that the first one tried fits most often: building a model's structure takes a second."""
    blocks = {found[1] for name in tensors if (found := re.search(r"\.blocks\.(\d+)\.", name))}
    config = PRESETS[preset]
    spatial = {"no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"} & set(tensors)
    return abs(len(blocks) - sum(config.trunk.stages)), bool(spatial) != config.no_obj_embed_spatial

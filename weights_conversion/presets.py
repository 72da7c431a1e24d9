"""Recognition of the layout and preset of a checkpoint from the names and shapes of its tensors.

A native checkpoint is not recognised but checked: its preset is in its configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from sam2_3dmed_jax.config import AnyModelConfig, ModelConfig
from sam2_3dmed_jax.model.build import abstract_model
from sam2_3dmed_jax.sam2.presets import PRESETS, preset_config
from weights_conversion.mapping import Layout, LayoutMap, Shapes, layout_map
from weights_conversion.source import FLOATS, Source, Tensor


@dataclass(frozen=True)
class Fit:
    """The discrepancies between a checkpoint and a preset in a layout."""

    preset: str  # or "unet"
    mapping: LayoutMap
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]  # with the expected and the actual shape
    mistyped: tuple[str, ...]  # with the actual type

    @property
    def discrepancies(self) -> int:
        """The number of tensors that do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.misshaped) + len(self.mistyped)

    @property
    def by_kind(self) -> dict[str, tuple[str, ...]]:
        """The names of the tensors that do not fit, by what is wrong with them."""
        return {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.misshaped,
            "of another type": self.mistyped,
        }


@cache
def native_shapes(config: AnyModelConfig) -> Shapes:
    """Return the shapes of the parameters of a model, by native name."""
    return {name: tuple(leaf.shape) for name, leaf in abstract_model(config)[1].items()}


@cache
def _expected(config: AnyModelConfig, layout: Layout) -> tuple[LayoutMap, Shapes]:
    shapes = native_shapes(config)
    mapping = layout_map(layout, shapes)
    return mapping, mapping.foreign_shapes(shapes)


def fit(tensors: Mapping[str, Tensor], config: AnyModelConfig, layout: Layout) -> Fit:
    """Compare the tensors of a checkpoint with a model in a layout, without reading values."""
    mapping, expected = _expected(config, layout)
    mapping = mapping.without_absent_copies(tensors)
    expected = {name: expected[name] for name in mapping.by_foreign}
    both = [name for name in expected if name in tensors]
    return Fit(
        config.preset if isinstance(config, ModelConfig) else "unet",
        mapping,
        tuple(name for name in expected if name not in tensors),
        tuple(name for name in tensors if name not in expected),
        tuple(
            f"{name} (expected {list(expected[name])}, found {list(tensors[name].shape)})"
            for name in both
            if tensors[name].shape != expected[name]
        ),
        tuple(
            f"{name} (expected floating point, found {tensors[name].dtype})"
            for name in both
            if tensors[name].dtype not in FLOATS
        ),
    )


def best_fit(tensors: Mapping[str, Tensor], preset: str | None = None) -> Fit:
    """Return the preset and foreign layout with the fewest discrepancies.

    Args:
        tensors: tensors of a checkpoint in Meta's or transformers' layout, by name.
        preset: the only preset to try; None: all.
    """
    presets = [preset] if preset else sorted(PRESETS, key=lambda name: _unlikeness(tensors, name))
    best: Fit | None = None
    for name in presets:
        for layout in _likely_layouts(tensors):
            candidate = fit(tensors, plain(name), layout)
            if best is None or candidate.discrepancies < best.discrepancies:
                best = candidate
        if best is not None and not best.discrepancies:
            break
    assert best is not None
    return best


def recognise(source: Source, preset: str | None = None) -> tuple[AnyModelConfig, Fit]:
    """Return the model of a checkpoint, and how the checkpoint differs from it.

    Args:
        source: the opened checkpoint.
        preset: the preset of the model; None: that in a native configuration, otherwise the best fit.

    Raises:
        UserError: the preset does not exist.
    """
    if preset:
        preset_config(preset)
    if source.info:
        config = source.info.model
        if preset and isinstance(config, ModelConfig):
            config = replace(config, preset=preset)
        return config, fit(source.tensors, config, "native")
    best = best_fit(source.tensors, preset)
    preset_size = PRESETS[best.preset].image_size
    return plain(best.preset, None if source.image_size == preset_size else source.image_size), best


def plain(preset: str, image_size: int | None = None) -> ModelConfig:
    """Return the configuration of a preset of SAM 2, without SRPP and BD."""
    return ModelConfig(preset, image_size, srpp=False, bd=False)


def _likely_layouts(tensors: Mapping[str, Tensor]) -> tuple[Layout, ...]:
    return (
        ("transformers", "meta")
        if any(name.startswith("vision_encoder.") for name in tensors)
        else ("meta", "transformers")
    )


def _unlikeness(tensors: Mapping[str, Tensor], preset: str) -> tuple[int, bool]:
    """Return a sort key that puts the most similar preset first; building the structure of a preset takes a second."""
    blocks = {match[1] for name in tensors if (match := re.search(r"\.blocks\.(\d+)\.", name))}
    config = PRESETS[preset]
    spatial = {"no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"} & set(tensors)
    return abs(len(blocks) - sum(config.trunk.stages)), bool(spatial) != config.no_obj_embed_spatial

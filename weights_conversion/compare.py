"""Tensor-by-tensor comparison of two checkpoints in any layouts, with the native names and axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.runtime.progress import Progress
from weights_conversion.mapping import LayoutMap
from weights_conversion.opening import open_source
from weights_conversion.presets import recognise
from weights_conversion.source import Source


@dataclass
class Comparison:
    """The differences between two checkpoints."""

    compared: int = 0
    different: dict[str, float] = field(default_factory=dict)  # name to largest absolute difference
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.different or self.shapes or self.only_a or self.only_b)

    def lines(self) -> list[str]:
        """Return one line per difference."""
        rows = [f"only in A: {name}" for name in self.only_a] + [f"only in B: {name}" for name in self.only_b]
        rows += [f"{name}: shapes {list(a)} and {list(b)}" for name, (a, b) in self.shapes.items()]
        return rows + [f"{name}: differs by up to {value:.3g}" for name, value in self.different.items()]


def compare_checkpoints(a: Path, b: Path, atol: float = 0.0, progress: Progress | None = None) -> Comparison:
    """Compare two checkpoints.

    Args:
        a: a checkpoint in any layout.
        b: another one.
        atol: largest absolute difference that counts as equal.
        progress: called after each tensor.

    Raises:
        UserError: a checkpoint cannot be read.
    """
    tensors_a, tensors_b = _tensors(open_source(a)), _tensors(open_source(b))
    comparison = Comparison(
        only_a=sorted(set(tensors_a) - set(tensors_b)), only_b=sorted(set(tensors_b) - set(tensors_a))
    )
    both = [name for name in tensors_a if name in tensors_b]
    for name in both:
        x, y = tensors_a[name](), tensors_b[name]()
        comparison.compared += 1
        if x.shape != y.shape:
            comparison.shapes[name] = (x.shape, y.shape)
        elif not np.array_equal(x, y, equal_nan=True):
            with np.errstate(invalid="ignore"):  # infinity minus infinity
                difference = np.abs(x.astype(np.float64) - y.astype(np.float64))
            largest = float(np.max(np.where(np.isnan(x) & np.isnan(y), 0.0, difference)))
            if not largest <= atol:  # NaN on one side only, too
                comparison.different[name] = largest
        if progress:
            progress("tensors", comparison.compared, len(both))
    return comparison


def _tensors(source: Source) -> dict[str, Callable[[], np.ndarray]]:
    """Return a reader per tensor, by native name; tensors that the model does not have keep their own names."""
    mapping: LayoutMap = recognise(source)[1].mapping

    named = {
        link.native: partial(mapping.to_native, link.native, source.read)
        for link in mapping.links
        if all(part in source.tensors for part in link.foreign)
    }
    others = {name: partial(source.read, name) for name in source.tensors if name not in mapping.by_foreign}
    return {**named, **others}

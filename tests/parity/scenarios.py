"""Scenarios for every implementation: rounds of prompts, each followed by propagation forward and backward.

Coordinates are fractions of the slice, so that a scenario fits all sizes; `middle` is the prompted slice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ask:
    """A prompt of one object on one slice. `points` are (x, y, label); `box` and `mask` are (x0, y0, x1, y1)."""

    object_id: int
    slice: int
    points: tuple[tuple[float, float, int], ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: tuple[float, float, float, float] | None = None  # a filled rectangle

    def coords(self, size: int) -> list[tuple[float, float]]:
        """Return the points in pixels."""
        return [(x * size, y * size) for x, y, _ in self.points]

    def labels(self) -> list[int]:
        """Return the labels of the points."""
        return [label for _, _, label in self.points]

    def corners(self, size: int) -> tuple[float, float, float, float] | None:
        """Return the box in pixels."""
        return None if self.box is None else tuple(size * v for v in self.box)  # type: ignore[return-value]

    def pixels(self, size: int) -> np.ndarray | None:
        """Return the mask, bool `[size, size]`."""
        if self.mask is None:
            return None
        x0, y0, x1, y1 = (round(size * v) for v in self.mask)
        mask = np.zeros((size, size), bool)
        mask[y0:y1, x0:x1] = True
        return mask


Scenario = tuple[tuple[Ask, ...], ...]  # rounds


@dataclass(frozen=True)
class Tracked:
    """The results of a scenario after each round."""

    mask_logits: np.ndarray  # float32 [rounds, K, D, S/4, S/4]
    object_score_logits: np.ndarray  # float32 [rounds, K, D]


def one_object(depth: int) -> Scenario:
    """One click on the middle slice."""
    return ((Ask(1, depth // 2, ((0.4, 0.5, 1),)),),)


def three_objects_and_a_correction(depth: int) -> Scenario:
    """A click, two clicks, and a box with a click on the middle slice; then a click on a propagated slice."""
    middle = depth // 2
    return (
        (
            Ask(1, middle, ((0.4, 0.5, 1),)),
            Ask(2, middle, ((0.2, 0.3, 1), (0.7, 0.3, 0))),
            Ask(3, middle, ((0.5, 0.4, 1),), box=(0.2, 0.2, 0.6, 0.7)),
        ),
        (Ask(1, middle + depth // 4, ((0.6, 0.6, 0),)),),
    )


def correction_behind(depth: int) -> Scenario:
    """A correction on a slice of the backward propagation, which becomes the earliest prompt."""
    middle = depth // 2
    return ((Ask(1, middle, ((0.4, 0.5, 1),)),), (Ask(1, middle - depth // 4, ((0.6, 0.6, 1),)),))


def two_corrections_in_one_round(depth: int) -> Scenario:
    """Corrections above and below the prompted slice, before the next propagation: both see the same memories."""
    middle = depth // 2
    return (
        (Ask(1, middle, ((0.4, 0.5, 1),)),),
        (Ask(1, middle + depth // 4, ((0.6, 0.6, 0),)), Ask(1, middle - depth // 4, ((0.5, 0.45, 1),))),
    )


def three_corrections_of_two_objects(depth: int) -> Scenario:
    """Two objects, three corrections in one round, and one more click on a corrected slice in the next round.

    Both objects have the same earliest prompt, because the reference starts all objects at the earliest prompt of any.
    """
    middle = depth // 2
    above, below = middle + depth // 4, middle - depth // 4
    return (
        (Ask(1, middle, ((0.4, 0.5, 1),)), Ask(2, middle, box=(0.2, 0.2, 0.6, 0.7))),
        (
            Ask(1, above, ((0.6, 0.6, 0),)),
            Ask(2, below, ((0.3, 0.6, 1), (0.8, 0.2, 0))),
            Ask(1, below, ((0.5, 0.45, 1),)),
        ),
        (Ask(1, above, ((0.45, 0.4, 1),)),),
    )


def mask_prompt(depth: int) -> Scenario:
    """A mask on the middle slice, and an empty mask: an object that is absent."""
    middle = depth // 2
    return ((Ask(1, middle, mask=(0.3, 0.25, 0.5, 0.5)), Ask(2, middle, mask=(0.0, 0.0, 0.0, 0.0))),)


def two_prompted_slices(depth: int) -> Scenario:
    """Clicks on two slices before the first propagation."""
    return ((Ask(1, depth // 4, ((0.4, 0.5, 1),)), Ask(1, 2 * depth // 3, ((0.5, 0.5, 1), (0.1, 0.1, 0)))),)


AT_MOST_ONE_CORRECTION_PER_ROUND = (
    one_object,
    three_objects_and_a_correction,
    correction_behind,
    mask_prompt,
    two_prompted_slices,
)
SEVERAL_CORRECTIONS_PER_ROUND = (two_corrections_in_one_round, three_corrections_of_two_objects)

SCENARIOS = {f.__name__: f for f in (*AT_MOST_ONE_CORRECTION_PER_ROUND, *SEVERAL_CORRECTIONS_PER_ROUND)}

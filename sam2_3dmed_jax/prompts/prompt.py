"""Prompts of the Python API: points, a box or a mask of one object, in pixels of the slices that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sam2_3dmed_jax.errors import UserError


@dataclass(frozen=True, eq=False)
class Prompt:
    """Prompts of one object on one slice, in pixels of the S x S slice.

    Attributes:
        object_id: any integer; results list objects in the order of their ids.
        slice: index of the slice.
        points: (x, y) each.
        labels: 1 (inside) or 0 (outside) for each point.
        box: (x0, y0, x1, y1), or None.
        mask: bool `[S, S]`, or None. It excludes points and a box; an empty mask means "not on this slice".
    """

    object_id: int
    slice: int
    points: Sequence[tuple[float, float]] = ()
    labels: Sequence[int] = ()
    box: tuple[float, float, float, float] | None = None
    mask: np.ndarray | None = None

    def check(self, depth: int, image_size: int) -> None:
        """Check that the prompt fits a volume of `depth` slices of `image_size` pixels.

        Raises:
            UserError: it does not fit.
        """
        name = f"prompt of object {self.object_id} on slice {self.slice}"
        if not 0 <= self.slice < depth:
            raise UserError(f"{name}: the volume has slices 0 to {depth - 1}; choose one of them")
        if len(self.points) != len(self.labels):
            raise UserError(
                f"{name}: {len(self.points)} points but {len(self.labels)} labels; give one label per point"
            )
        if any(label not in (0, 1) for label in self.labels):
            raise UserError(f"{name}: labels are {tuple(self.labels)}; use 1 for inside and 0 for outside")
        if self.mask is not None and (len(self.points) or self.box is not None):
            raise UserError(f"{name}: a mask excludes points and a box; leave them out, or leave the mask out")
        if self.mask is None and not len(self.points) and self.box is None:
            raise UserError(f"{name}: it is empty; give points, a box or a mask")
        if self.mask is not None and self.mask.shape != (image_size, image_size):
            raise UserError(f"{name}: its mask is {self.mask.shape}; give one of {(image_size, image_size)} pixels")
        self._check_positions(name, image_size)

    def _check_positions(self, name: str, image_size: int) -> None:
        corners = [] if self.box is None else [self.box[:2], self.box[2:]]
        for x, y in [*self.points, *corners]:
            if not (-0.5 <= x <= image_size - 0.5 and -0.5 <= y <= image_size - 0.5):
                raise UserError(
                    f"{name}: ({x:g}, {y:g}) is outside the slice; x and y go from 0 to {image_size - 1} pixels"
                )
        if self.box is not None and (self.box[0] > self.box[2] or self.box[1] > self.box[3]):
            raise UserError(f"{name}: its box is {self.box}; give the corner with the smaller x and y first")

    def merge(self, later: Prompt) -> Prompt:
        """Return this prompt with a later one for the same object and slice: points add up, a box or mask replaces."""
        if later.mask is not None or self.mask is not None:
            return later
        return replace(
            self,
            points=(*self.points, *later.points),
            labels=(*self.labels, *later.labels),
            box=later.box if later.box is not None else self.box,
        )

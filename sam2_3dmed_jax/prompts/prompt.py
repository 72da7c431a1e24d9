"""What a user says about an object on a slice, checked and batched into the token arrays of the prompt encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.sam2.prompt_encoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NEGATIVE, NOT_A_POINT, POSITIVE, Prompts


@dataclass(frozen=True, eq=False)
class Prompt:
    """Prompts of one object on one slice, in pixels of the S x S slice.

    Attributes:
        object_id: any integer; results list objects in the order of their ids.
        slice: index of the slice.
        points: (x, y) each.
        labels: 1 (inside) or 0 (outside) for each point.
        box: (x0, y0, x1, y1), or None.
        mask: bool `[S, S]`, or None; stands alone, and an empty one says "not on this slice".
    """

    object_id: int
    slice: int
    points: Sequence[tuple[float, float]] = ()
    labels: Sequence[int] = ()
    box: tuple[float, float, float, float] | None = None
    mask: np.ndarray | None = None

    def check(self, depth: int, image_size: int) -> None:
        """Raise `UserError` unless the prompt fits a volume of `depth` slices of `image_size` pixels."""
        name = f"prompt of object {self.object_id} on slice {self.slice}"
        if not 0 <= self.slice < depth:
            raise UserError(f"{name}: the volume has slices 0 to {depth - 1}; choose one of them")
        if len(self.points) != len(self.labels):
            raise UserError(f"{name}: {len(self.points)} points but {len(self.labels)} labels; give one label a point")
        if any(label not in (NEGATIVE, POSITIVE) for label in self.labels):
            raise UserError(f"{name}: labels are {tuple(self.labels)}; use 1 for inside and 0 for outside")
        if self.mask is not None and (len(self.points) or self.box is not None):
            raise UserError(
                f"{name}: a mask stands alone; give points or a box for another slice, or leave the mask out"
            )
        if self.mask is None and not len(self.points) and self.box is None:
            raise UserError(f"{name}: it is empty; give points, a box or a mask")
        if self.mask is not None and self.mask.shape != (image_size, image_size):
            raise UserError(f"{name}: its mask is {self.mask.shape}; give one of {(image_size, image_size)} pixels")
        corners = [] if self.box is None else [self.box[:2], self.box[2:]]
        for x, y in [*self.points, *corners]:
            if not (-0.5 <= x <= image_size - 0.5 and -0.5 <= y <= image_size - 0.5):
                raise UserError(
                    f"{name}: ({x:g}, {y:g}) lies outside the slice; x and y go from 0 to {image_size - 1} pixels"
                )
        if self.box is not None and (self.box[0] > self.box[2] or self.box[1] > self.box[3]):
            raise UserError(f"{name}: its box is {self.box}; give the corner with the smaller x and y first")

    def merge(self, later: Prompt) -> Prompt:
        """This prompt with a later one for the same object and slice: points add up, a box or mask replaces."""
        if later.mask is not None or self.mask is not None:
            return later
        return replace(
            self,
            points=(*self.points, *later.points),
            labels=(*self.labels, *later.labels),
            box=later.box if later.box is not None else self.box,
        )

    def tokens(self) -> tuple[list[tuple[float, float]], list[int]]:
        """Coordinates and labels as the reference orders them: box corners, points, one `NOT_A_POINT`."""
        coords, labels = list(self.points), list(self.labels)
        if self.box is not None:
            coords = [self.box[:2], self.box[2:], *coords]
            labels = [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT, *labels]
        return [*coords, (0.0, 0.0)], [*labels, NOT_A_POINT]


def batch_prompts(prompts: Sequence[Prompt], rows: int, previous: np.ndarray | None = None) -> Prompts:
    """Batch point and box prompts into `rows` rows; the rows beyond them and the tokens beyond each are masked out.

    Args:
        prompts: without masks.
        rows: at least as many as prompts.
        previous: float32 `[rows, S/4, S/4]`, earlier logits of these slices as a dense prompt, or None.
    """
    tokens = [prompt.tokens() for prompt in prompts]
    width = power_of_two(max(len(labels) for _, labels in tokens))
    coords = np.zeros((rows, width, 2), np.float32)
    labels = np.full((rows, width), NOT_A_POINT, np.int32)
    valid = np.zeros((rows, width), bool)
    valid[:, 0] = True  # so that padding rows have something to attend to
    for row, (xy, kinds) in enumerate(tokens):
        coords[row, : len(kinds)], labels[row, : len(kinds)], valid[row, : len(kinds)] = xy, kinds, True
    # One click is ambiguous: SAM 2 then chooses among three candidates. A box counts as two points.
    multimask = np.array([len(kinds) - 1 <= 1 for _, kinds in tokens] + [True] * (rows - len(tokens)))
    if previous is None:
        return Prompts(coords, labels, valid, multimask)  # type: ignore[arg-type]
    return Prompts(coords, labels, valid, multimask, previous, np.ones(rows, bool))  # type: ignore[arg-type]


def power_of_two(n: int) -> int:
    """The smallest power of two of at least `n`, so that few shapes are compiled."""
    return 1 << max(n - 1, 0).bit_length()

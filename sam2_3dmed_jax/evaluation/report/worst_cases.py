"""The worst cases, drawn: three planes through the place where prediction and reference differ most.

Drawn as arrays, as the rows are made: a picture takes milliseconds, and only those of the worst cases so far are kept.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.evaluation.summary import Row
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import apply_window, window_of

PICTURE = "picture"  # of a row: PNG as base64, so that it can be kept beside the row's numbers
WORST = 8
PREDICTION, REFERENCE = (255, 176, 0), (0, 200, 255)  # as in `figures`
_HEIGHT, _WIDTH = 240, 320  # of a plane, pixels
_MARGIN = 15.0  # mm around both masks
_UPWARDS = (False, True, True)  # axial rows run from anterior; coronal and sagittal have the head up


def worst(rows: Sequence[Row], number: int = WORST) -> list[Row]:
    """The rows with the lowest Dice, each class having its share of them; of equal ones, the larger reference first.

    Files that are missing are not among them: they are listed elsewhere, and there is nothing to see.

    A row that is not among these now will never be when more rows have come: `illustrate` relies on it.
    """
    if not rows or not number:
        return []
    classes = dict.fromkeys(row["class"] for row in rows)
    share = max(1, number // len(classes))
    scored = sorted((row for row in rows if not math.isnan(row["dice"]) and row.get("missing") != "yes"), key=_badness)
    kept = {name: [row for row in scored if row["class"] == name][:share] for name in classes}
    return sorted((row for own in kept.values() for row in own), key=_badness)[:number]


def illustrate(
    before: Sequence[Row],
    rows: Sequence[Row],
    number: int,
    masks: Callable[[int], tuple[np.ndarray, np.ndarray]],
    spacing: tuple[float, float, float],
    scan: Callable[[], Volume | None] = lambda: None,
    window: str = "soft_tissue",
) -> None:
    """Give those rows of a case a picture that are among the worst so far, and take it from those no longer among them.

    Args:
        before: rows of the cases before this one.
        rows: of this case; changed in place.
        number: of pictures.
        masks: prediction and reference of a row of this case, bool `[D, H, W]`, by its place.
        spacing: (dz, dy, dx) in mm.
        scan: reads the volume, or None: asked for once, and only if there is a picture to draw.
        window: as `data.preprocessing.window`.
    """
    if not number:
        return
    kept = {id(row) for row in worst([*before, *rows], number)}
    for row in before:
        if id(row) not in kept:
            row.pop(PICTURE, None)
    drawn = [place for place, row in enumerate(rows) if id(row) in kept]
    volume = scan() if drawn else None
    ground = () if volume is None else (volume.array, window_of(volume, window))
    for place in drawn:
        rows[place][PICTURE] = base64.b64encode(draw(*masks(place), spacing, *ground)).decode("ascii")


def draw(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    image: np.ndarray | None = None,
    window: tuple[float, float] = (0.5, 1.0),
) -> bytes:
    """Axial, coronal and sagittal plane side by side (PNG), the reference's contour dashed.

    Each plane is the one on which the masks differ in most voxels, or the largest one of masks that are alike, cut to
    both masks and a margin. Pixels have the shape that the spacing gives them.

    Args:
        prediction: bool `[D, H, W]`.
        reference: bool `[D, H, W]`.
        spacing: (dz, dy, dx) in mm.
        image: `[D, H, W]`, or None.
        window: level and width in the image's values.
    """
    from matplotlib.image import imsave

    either = prediction | reference
    differing = prediction ^ reference if (prediction != reference).any() else either
    planes = []
    for axis in range(3):
        rows, columns = (a for a in range(3) if a != axis)
        index = int(np.count_nonzero(differing, axis=(rows, columns)).argmax())
        box = [_extent(either, a, spacing[a]) for a in (rows, columns)]
        found, actual = (array.take(index, axis)[box[0], box[1]] for array in (prediction, reference))
        # Without a scan there is dark ground.
        grey = np.full(found.shape, 0.12)
        if image is not None:
            grey = apply_window(image.take(index, axis)[box[0], box[1]], *window)
        planes.append(_plane(found, actual, grey, (spacing[rows], spacing[columns]), _UPWARDS[axis]))
    file = io.BytesIO()
    imsave(file, np.concatenate(planes, 1), format="png")
    return file.getvalue()


def _badness(row: Row) -> tuple[float, float]:
    return row["dice"], -row["volume_ml_reference"]


def _extent(mask: np.ndarray, axis: int, spacing: float) -> slice:
    """Where a mask lies along an axis, with a margin; all of an empty one."""
    found = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
    if not found.size:
        return slice(None)
    margin = math.ceil(_MARGIN / spacing)
    return slice(max(0, int(found[0]) - margin), int(found[-1]) + 1 + margin)


def _plane(
    prediction: np.ndarray,
    reference: np.ndarray,
    image: np.ndarray,
    spacing: tuple[float, float],
    upwards: bool,
) -> np.ndarray:
    """One plane on its canvas, uint8 `[_HEIGHT, _WIDTH, 3]`."""
    height, width = (size * step for size, step in zip(prediction.shape, spacing, strict=True))
    scale = min((_HEIGHT - 8) / height, (_WIDTH - 8) / width)  # pixels a mm
    # The voxel that each pixel lies in: nothing is smoothed.
    at = [
        np.minimum((np.arange(max(1, round(size * step * scale))) / (step * scale)).astype(int), size - 1)
        for size, step in zip(prediction.shape, spacing, strict=True)
    ]
    place = np.ix_(at[0][::-1] if upwards else at[0], at[1])
    grey = image[place]
    picture = np.repeat((grey * 255).astype(np.uint8)[..., None], 3, -1)
    y, x = np.indices(grey.shape)
    for mask, colour, dashed in ((reference, REFERENCE, True), (prediction, PREDICTION, False)):
        inside = np.pad(mask[place], 2)
        outline = (inside & ~ndimage.binary_erosion(inside, iterations=2))[2:-2, 2:-2]
        picture[outline & ((2 * x + y) % 16 < 10) if dashed else outline] = colour
    canvas = np.zeros((_HEIGHT, _WIDTH, 3), np.uint8)
    top, left = ((whole - part) // 2 for whole, part in zip(canvas.shape, grey.shape, strict=False))
    canvas[top : top + grey.shape[0], left : left + grey.shape[1]] = picture
    return canvas

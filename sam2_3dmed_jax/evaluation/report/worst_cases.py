"""Pictures of the worst cases: three planes through the place where prediction and reference differ most.

They are drawn as arrays while rows are scored: a picture takes milliseconds, and only the worst cases so far keep one.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.config import DEFAULT_CT_WINDOW
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.metrics.mask_box import union_extent
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import apply_window, window_of

PICTURE = "picture"  # key of a row: PNG as base64, which journals can store with the numbers of the row
WORST = 8
PREDICTION, REFERENCE = (255, 176, 0), (0, 200, 255)  # RGB, amber and blue
_HEIGHT, _WIDTH = 240, 320  # pixels of a plane
_MARGIN = 15.0  # mm around both masks
_UPWARDS = (False, True, True)  # axial rows start at anterior; coronal and sagittal planes have the head up


def worst(rows: Sequence[ScoreRow], number: int = WORST) -> list[ScoreRow]:
    """Return the rows with the lowest Dice, an equal share per class; among equal ones, the larger reference first.

    Missing files are left out: they are listed elsewhere, and a picture would show nothing.

    A row that is not among the worst now will never be so after more rows are added: `illustrate` relies on it.
    """
    if not rows or not number:
        return []
    classes = dict.fromkeys(row["class"] for row in rows)
    share = max(1, number // len(classes))
    scored = sorted((row for row in rows if not math.isnan(row["dice"]) and row.get("missing") != "yes"), key=_badness)
    kept = [row for name in classes for row in [row for row in scored if row["class"] == name][:share]]
    return sorted(kept, key=_badness)[:number]


def illustrate(
    before: Sequence[ScoreRow],
    rows: Sequence[ScoreRow],
    number: int,
    masks: Callable[[int], tuple[np.ndarray, np.ndarray]],
    spacing: tuple[float, float, float],
    scan: Callable[[], Volume | None] = lambda: None,
    window: str = DEFAULT_CT_WINDOW,
) -> None:
    """Add pictures to the rows of a case that are among the worst so far, and remove them from those no longer so.

    Args:
        before: rows of the cases before this one; changed in place.
        rows: of this case; changed in place.
        number: of pictures.
        masks: returns prediction and reference of a row of this case, bool `[D, H, W]`, by its place.
        spacing: (dz, dy, dx) in mm.
        scan: returns the volume or None; called at most once, and only if a picture is drawn.
        window: as `data.preprocessing.window`.
    """
    if not number:
        return
    kept = {id(row) for row in worst([*before, *rows], number)}
    for row in before:
        if id(row) not in kept:
            row.pop(PICTURE, None)
    add_pictures([row for row in rows if id(row) in kept], rows, masks, spacing, scan, window)


def add_pictures(
    drawn: Sequence[ScoreRow],
    rows: Sequence[ScoreRow],
    masks: Callable[[int], tuple[np.ndarray, np.ndarray]],
    spacing: tuple[float, float, float],
    scan: Callable[[], Volume | None] = lambda: None,
    window: str = DEFAULT_CT_WINDOW,
) -> None:
    """Add pictures to some of the rows of a case, `drawn`; the other arguments are as in `illustrate`."""
    places = [place for place, row in enumerate(rows) if any(row is one for one in drawn)]
    volume = scan() if places else None
    ground = () if volume is None else (volume.array, window_of(volume, window))
    for place in places:
        rows[place][PICTURE] = base64.b64encode(draw(*masks(place), spacing, *ground)).decode("ascii")


def draw(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    image: np.ndarray | None = None,
    window: tuple[float, float] = (0.5, 1.0),
) -> bytes:
    """Draw an axial, a coronal and a sagittal plane next to each other, with the contour of the reference dashed.

    Each plane is the one on which the masks differ in most voxels, or the one with most voxels of equal masks, cropped
    to both masks and a margin. Pixels have the aspect ratio of the spacing.

    Args:
        prediction: bool `[D, H, W]`.
        reference: bool `[D, H, W]`.
        spacing: (dz, dy, dx) in mm.
        image: `[D, H, W]`, or None.
        window: level and width in the image's values.

    Returns:
        The bytes of a PNG file.
    """
    from matplotlib.image import imsave

    around = [
        _with_margin(*of_axis)
        for of_axis in zip(union_extent(prediction, reference), reference.shape, spacing, strict=True)
    ]
    prediction, reference = (mask[tuple(around)] for mask in (prediction, reference))
    differing = prediction ^ reference
    if not differing.any():
        differing = reference
    planes = []
    for axis in range(3):
        rows, columns = (a for a in range(3) if a != axis)
        index = int(np.count_nonzero(differing, axis=(rows, columns)).argmax())
        predicted, actual = (mask.take(index, axis) for mask in (prediction, reference))
        grey = np.full(predicted.shape, 0.12)  # dark, without a scan
        if image is not None:
            grey = apply_window(image[tuple(around)].take(index, axis), *window)
        planes.append(_plane(predicted, actual, grey, (spacing[rows], spacing[columns]), _UPWARDS[axis]))
    file = io.BytesIO()
    imsave(file, np.concatenate(planes, 1), format="png")
    return file.getvalue()


def _badness(row: ScoreRow) -> tuple[float, float]:
    return row["dice"], -row["volume_ml_reference"]


def _with_margin(extent: slice, size: int, spacing: float) -> slice:
    """Return the extent of masks along an axis of a size, with a margin, or the whole axis for empty masks."""
    if extent.start == extent.stop:
        return slice(0, size)
    margin = math.ceil(_MARGIN / spacing)
    return slice(max(0, extent.start - margin), min(size, extent.stop + margin))


def _plane(
    prediction: np.ndarray,
    reference: np.ndarray,
    image: np.ndarray,
    spacing: tuple[float, float],
    upwards: bool,
) -> np.ndarray:
    """Return one plane on its canvas, uint8 `[_HEIGHT, _WIDTH, 3]`."""
    height, width = (size * step for size, step in zip(prediction.shape, spacing, strict=True))
    scale = min((_HEIGHT - 8) / height, (_WIDTH - 8) / width)  # pixels per mm
    # Each pixel shows the voxel that it is in, without smoothing.
    voxels = [
        np.minimum((np.arange(max(1, round(size * step * scale))) / (step * scale)).astype(int), size - 1)
        for size, step in zip(prediction.shape, spacing, strict=True)
    ]
    place = np.ix_(voxels[0][::-1] if upwards else voxels[0], voxels[1])
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

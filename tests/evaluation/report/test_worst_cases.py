"""Pictures of the worst cases: which rows keep one while cases are added, and what they show."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from sam2_3dmed_jax.evaluation.report.worst_cases import PICTURE, PREDICTION, REFERENCE, draw, illustrate, worst


def block(*corner: int) -> np.ndarray:
    mask = np.zeros((8, 20, 20), bool)
    d, h, w = corner
    mask[d : d + 3, h : h + 6, w : w + 6] = True
    return mask


def pixels(png: bytes) -> np.ndarray:
    return np.round(imread(io.BytesIO(png))[..., :3] * 255).astype(int)


def test_the_worst_rows_have_pictures_in_any_order_of_cases():
    rng = np.random.default_rng(0)
    masks = block(1, 2, 2), block(2, 4, 4)
    for _ in range(6):
        rows: list[dict[str, Any]] = []
        for case in range(8):
            dice = rng.choice([0.0, 0.3, 0.5, 0.7, np.nan], 3)
            new = [
                {"case": case, "class": name, "dice": float(d), "volume_ml_reference": float(rng.integers(3))}
                for name, d in zip("abc", dice, strict=True)
            ]
            illustrate(rows, new, 4, lambda place: masks, (3.0, 1.0, 1.0))
            rows += json.loads(json.dumps(new))  # as an interrupted evaluation reads them back
        kept = [row for row in rows if PICTURE in row]
        assert sorted(map(id, kept)) == sorted(map(id, worst(rows, 4)))


def test_without_requested_pictures_none_is_drawn_and_no_scan_is_read():
    row = {"case": "a", "class": "x", "dice": 0.1, "volume_ml_reference": 1.0}

    def never(*_: Any) -> Any:
        pytest.fail("nothing is to be drawn")

    illustrate([], [row], 0, never, (1.0, 1.0, 1.0), never)
    illustrate([], [{**row, "missing": "yes"}], 3, never, (1.0, 1.0, 1.0), never)
    assert PICTURE not in row


def test_prediction_and_reference_are_outlined_in_their_colours_over_the_scan():
    prediction, reference = block(1, 2, 2), block(3, 8, 8)
    image = np.full(prediction.shape, 40.0, np.float32)
    shown = pixels(draw(prediction, reference, (3.0, 1.0, 1.0), image, (40.0, 400.0)))
    assert shown.shape == (240, 960, 3)
    amber, blue = ((shown == colour).all(-1) for colour in (PREDICTION, REFERENCE))
    for panel in range(3):
        part = slice(320 * panel, 320 * (panel + 1))
        grey = (abs(shown[:, part] - 127) <= 1).all(-1).mean()
        assert grey > 0.2 and (amber[:, part].any() or blue[:, part].any())
    assert amber.any() and blue.any()
    only = pixels(draw(prediction, np.zeros_like(prediction), (3.0, 1.0, 1.0)))
    assert not (only == REFERENCE).all(-1).any() and (only == PREDICTION).all(-1).any()


def test_a_coronal_plane_has_the_head_up_and_pixels_the_shape_of_their_spacing():
    mask = np.zeros((10, 21, 21), bool)
    mask[7:9, 5:15, 5:15] = True  # near the head: 10 mm high, 10 mm wide
    shown = (pixels(draw(mask, mask, (5.0, 1.0, 1.0))) == PREDICTION).all(-1)
    rows, columns = np.nonzero(shown[:, 320:640])
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=2)
    assert rows.mean() < 120 - 10  # 5 mm of margin above it, 15 mm below


def test_empty_and_equal_masks_are_drawn_too():
    nothing = np.zeros((4, 5, 6), bool)
    for prediction, reference in ((nothing, nothing), (~nothing, ~nothing)):
        assert pixels(draw(prediction, reference, (1.0, 2.0, 3.0))).shape == (240, 960, 3)


def test_pictures_are_stored_as_text():
    row = {"case": "a", "class": "x", "dice": 0.1, "volume_ml_reference": 1.0}
    illustrate([], [row], 1, lambda place: (block(1, 2, 2), block(2, 2, 2)), (1.0, 1.0, 1.0))
    assert base64.b64decode(row[PICTURE]).startswith(b"\x89PNG")

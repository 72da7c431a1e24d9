"""Made cases of the SEGFM3D challenge, written as its own scripts write them, and a method that needs no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.segfm3d.case import Case

SHAPE = (10, 22, 26)
SPACING = (3.0, 0.8, 0.7)


def image() -> np.ndarray:
    """Return windowed intensities of blobs, uint8."""
    coarse = np.random.default_rng(3).integers(0, 256, tuple(-(-n // 4) for n in SHAPE), dtype=np.uint8)
    return coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)[: SHAPE[0], : SHAPE[1], : SHAPE[2]].copy()


def reference() -> np.ndarray:
    """Return two classes, uint8: a ball with a tail, and a plate."""
    z, y, x = np.indices(SHAPE)
    labels = np.zeros(SHAPE, np.uint8)
    labels[(z - 4) ** 2 * 4 + (y - 8) ** 2 + (x - 8) ** 2 <= 36] = 1
    labels[4, 8, 8:20] = 1
    labels[6:9, 14:20, 12:24] = 2
    return labels


def boxes(labels: np.ndarray) -> list[dict[str, Any]]:
    """Return the boxes of all classes with NumPy's integers, as the challenge's script makes them; not shifted."""
    found = []
    for value in np.unique(labels)[1:]:
        z = np.unique(np.nonzero(labels == value)[0])
        middle = z[len(z) // 2]
        y, x = np.nonzero(labels[middle] == value)
        found.append({"z_min": z.min(), "z_max": z.max(), "z_mid": middle, "z_mid_x_min": x.min()})
        found[-1] |= {"z_mid_y_min": y.min(), "z_mid_x_max": x.max(), "z_mid_y_max": y.max()}
    return found


def write_case(path: Path, with_boxes: bool = True, **changes: Any) -> Path:
    """Write a case with `gts`; `changes` replaces or adds arrays, and None leaves one out."""
    arrays: dict[str, Any] = {"imgs": image(), "gts": reference(), "spacing": np.array(SPACING)}
    if with_boxes:
        arrays["boxes"] = boxes(reference())
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{name: value for name, value in (arrays | changes).items() if value is not None})
    return path


class Balls:
    """A method that fills boxes, adds a ball at each foreground click, and removes one at each background click."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def segment(self, case: Case, progress: object = None) -> np.ndarray:
        self.cases.append(case)
        labels = np.zeros(case.images.shape, np.uint8)
        for number in range(case.classes):
            mask = np.zeros(labels.shape, bool)
            if case.boxes:
                box = case.boxes[number]
                rows, columns = slice(box.z_mid_y_min, box.z_mid_y_max + 1), slice(box.z_mid_x_min, box.z_mid_x_max + 1)
                mask[box.z_min : box.z_max + 1, rows, columns] = True
            for click in case.clicks[number] if case.clicks else ():
                z, y, x = click.voxel
                mask[max(z - 1, 0) : z + 2, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = click.inside
            labels[mask] = number + 1
        return labels

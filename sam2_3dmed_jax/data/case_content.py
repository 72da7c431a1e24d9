"""Content of a case: hashes of its decoded voxels and its grid, which do not depend on file format and compression.

Cases that version 0.1 recorded have no content; they are compared by the SHA-256 of their files.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Annotated, Any, cast

import numpy as np

from sam2_3dmed_jax.config import Range
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.hashing import sha256_of_chunks
from sam2_3dmed_jax.volume.geometry import Grid, Volume, check_same_grid

Row = tuple[float, float, float, float]
Affine = tuple[Row, Row, Row, Row]


@dataclass(frozen=True)
class CaseContent:
    """What training reads of a case before resampling, in canonical order."""

    image: str  # SHA-256 of the values
    labels: str  # SHA-256 of the label map
    shape: Annotated[tuple[int, int, int], Range(1, 65535)]  # (D, H, W)
    affine: Annotated[Affine, Range(-1e9, 1e9)]  # 4 x 4: index (d, h, w, 1) to RAS millimetres
    modality: str  # DICOM's Modality

    def equals(self, other: CaseContent) -> bool:
        """Return whether voxels and modality are equal, and the grids are equal within the tolerance of label maps."""
        if (self.image, self.labels, self.modality) != (other.image, other.labels, other.modality):
            return False
        try:
            check_same_grid(*(Grid(each.shape, np.array(each.affine), is_canonical=True) for each in (self, other)))
        except UserError:
            return False
        return True


@dataclass(frozen=True)
class RecordedCase:
    """Content and files of a case, as far as they are known."""

    content: CaseContent | None = None  # None: recorded by a version before 0.2
    image_file: str = ""  # SHA-256 of the bytes; "": unknown
    label_file: str = ""

    def same_files(self, other: RecordedCase) -> bool:
        """Return whether both have known files with the same bytes."""
        files = self.image_file, self.label_file
        return all(files) and files == (other.image_file, other.label_file)

    def equals(self, other: RecordedCase) -> bool | None:
        """Return whether the content is the same; None if that is unknown."""
        if self.content and other.content:
            return self.content.equals(other.content)
        known = all((self.image_file, self.label_file, other.image_file, other.label_file))
        return self.same_files(other) if known else None


def affine_rows(affine: np.ndarray) -> Affine:
    """Return an affine map `[4, 4]` as records store it."""
    return cast(Affine, tuple(tuple(row) for row in affine.tolist()))


def case_content(volume: Volume, labels: np.ndarray) -> CaseContent:
    """Return the content of a case.

    Args:
        volume: the image.
        labels: integers `[D, H, W]` in canonical order.
    """
    return CaseContent(
        image=_sha256(volume.array, "<f4"),
        labels=_sha256(labels, "<i4"),
        shape=volume.grid.canonical_shape,
        affine=affine_rows(volume.canonical_affine),
        modality=volume.modality,
    )


def recorded_to_json(case: RecordedCase | None) -> dict[str, Any] | None:
    """Return a recorded case as JSON values; None stays None."""
    return asdict(case) if case else None


def _sha256(array: np.ndarray, dtype: str) -> str:
    """Return the SHA-256 of the shape and the elements, slice by slice, so that no second volume is in memory."""
    planes = ((plane.astype(dtype) + np.zeros((), dtype)).tobytes() for plane in array)  # the sum turns -0.0 into 0.0
    return sha256_of_chunks(itertools.chain([repr(array.shape).encode()], planes))

"""One prediction and its reference, with everything that metrics may need, and the settings of metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.metrics.lesions import Lesion, LesionCounts, count_lesions
from sam2_3dmed_jax.metrics.mask_box import union_extent
from sam2_3dmed_jax.metrics.overlap import overlap_metrics
from sam2_3dmed_jax.metrics.prompt_distance import Distances, dice_by_distance
from sam2_3dmed_jax.metrics.reliability import WIDTH_MM, ObjectReliability, object_reliability
from sam2_3dmed_jax.metrics.surface import DEFINITIONS, EMPTY_POLICIES
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.nearest_grid import check_orthogonal
from sam2_3dmed_jax.volume.zoom import Logits

_EMPTY = {(True, True): "", (True, False): "reference", (False, True): "prediction", (False, False): "both"}


@dataclass(frozen=True)
class MetricSettings:
    """Which metrics are computed, and by which definitions."""

    definition: str = "surface-distance"  # of surface metrics, one of `surface.DEFINITIONS`
    empty: str = "diagonal"  # distances where one mask is empty, one of `surface.EMPTY_POLICIES`
    surfaces: bool = True  # compute surface metrics; otherwise overlap and volumes only
    resample: bool = False  # compute surface metrics of slanted grids on an orthogonal one, by nearest neighbour

    def __post_init__(self) -> None:
        if self.definition not in DEFINITIONS:
            raise UserError(f"--definition: '{self.definition}' does not exist; choose one of {', '.join(DEFINITIONS)}")
        if self.empty not in EMPTY_POLICIES:
            raise UserError(f"--empty: '{self.empty}' does not exist; choose one of {', '.join(EMPTY_POLICIES)}")

    def check_grid(self, grid: Grid) -> None:
        """Check that the metrics can be computed on a grid.

        Raises:
            UserError: its axes are not orthogonal, and surface metrics without resampling are requested.
        """
        if self.surfaces and not self.resample:
            check_orthogonal(grid)


@dataclass(frozen=True, eq=False)
class MaskPair:
    """A prediction and its reference, the input of all metrics; what several metrics share is computed once."""

    prediction: np.ndarray  # bool [D, H, W]
    reference: np.ndarray  # bool [D, H, W]
    grid: Grid  # of both
    prompted_slices: Sequence[int] = ()  # canonical slices with a prompt
    tolerance_mm: float = 3.0  # of NSD
    settings: MetricSettings = field(default_factory=MetricSettings)
    tumour: bool = False  # lesions are counted
    logits: Logits | None = None  # float32 [D, S/4, S/4] of the object; None: its probabilities are unknown
    band_mm: float = WIDTH_MM  # half width of the band of the reliability metrics

    @cached_property
    def near(self) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and reference, bool `[D, h, w]`, on all slices, cropped to the rows and columns of both.

        Objects fill a few percent of a volume, and metrics look at it many times.
        """
        if self.prediction.shape != self.reference.shape:
            return self.prediction, self.reference  # metrics refuse them
        _, rows, columns = union_extent(self.prediction, self.reference)
        return self.prediction[:, rows, columns], self.reference[:, rows, columns]

    @cached_property
    def empty(self) -> str:
        """Which masks are empty: 'prediction', 'reference', 'both', or ''."""
        prediction, reference = self.near
        return _EMPTY[bool(prediction.any()), bool(reference.any())]

    @cached_property
    def overlap(self) -> dict[str, float]:
        """Dice and IoU over all slices."""
        return overlap_metrics(*self.near)

    @cached_property
    def by_distance(self) -> Distances:
        """Dice by distance from the nearest prompted slice; [] without prompts."""
        return dice_by_distance(*self.near, self.prompted_slices, self.grid.spacing[0])

    @cached_property
    def lesions(self) -> tuple[LesionCounts, list[Lesion]]:
        """The lesion counts, and each lesion of the reference."""
        return count_lesions(*self.near, self.grid.voxel_volume_ml)

    @cached_property
    def reliability(self) -> ObjectReliability:
        """Reliability of the object's probabilities near its boundary."""
        return object_reliability(self.logits, self.reference, self.grid, self.band_mm)

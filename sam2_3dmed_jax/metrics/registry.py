"""The table of metrics: every score of a prediction, with its name, unit, direction, definition and function.

The columns of `cases.csv`, the entries of `summary.json`, the report, comparisons and console lines follow from
`METRICS`. To add a metric, write its function and add an entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from sam2_3dmed_jax.metrics.mask_pair import MaskPair
from sam2_3dmed_jax.metrics.overlap import overlap_without_slices
from sam2_3dmed_jax.metrics.reliability import BINS
from sam2_3dmed_jax.metrics.surface import surface_metrics
from sam2_3dmed_jax.metrics.volumes import leakage_mm, volume_metrics
from sam2_3dmed_jax.volume.nearest_grid import is_orthogonal, onto_grid, orthogonal_grid

Compute = Callable[[MaskPair], Mapping[str, float]]
Requirement = Literal["masks", "surfaces", "prompts", "logits", "tumour"]


@dataclass(frozen=True)
class Metric:
    """One score of a prediction, as files, report and comparisons present it."""

    name: str  # column of `cases.csv` and key of `summary.json`
    label: str  # in the report, without unit
    unit: str  # "": none
    better: Literal["higher", "lower"] | None  # None: neither direction is better
    definition: str
    digits: int  # after the point, in the report
    compute: Compute  # metrics with the same function are computed by one call, which returns all of them by name
    requires: Requirement = "masks"  # see `is_available`
    term: str = ""  # key of the definition in `summary.json`, where several metrics share it; "": the name
    limits: tuple[float, float] | None = None  # range of possible values, for axes of plots
    averaged: bool = True  # `summary.json` and the report have its mean over cases
    compared: bool = True  # comparisons have its difference, if it is averaged
    primary: bool = False  # comparisons test it; curves of sweeps show it
    headline: bool = False  # console lines and short tables show it
    plotted: bool = False  # the report has box plots of it
    signed: bool = False  # a plus sign is shown
    tolerant: bool = False  # it depends on the tolerance of its class, which is shown with it

    @property
    def title(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def hides_misses(self) -> bool:
        """Whether a mean over cases with a value would reward a missed structure that has no value.

        Distances have no value if one mask is empty, under the policy 'nan'. The reliability of a missed structure has
        a value, and the reliability of a structure that the reference lacks is not defined at all.
        """
        return self.better == "lower" and self.requires != "logits"


def is_available(requires: Requirement, pair: MaskPair) -> bool:
    """Return whether a pair of masks has what a metric requires.

    Overlap without prompted slices is available without prompts too: it is then the overlap of all slices.
    """
    return {
        "masks": True,
        "prompts": True,
        "surfaces": pair.settings.surfaces,
        "logits": pair.logits is not None,
        "tumour": pair.tumour,
    }[requires]


def compute_metrics(pair: MaskPair, names: Collection[str] | None = None) -> dict[str, float]:
    """Compute the metrics of one prediction.

    Args:
        pair: the prediction and its reference.
        names: of the metrics to return; None: all. Metrics that are computed together with these are computed too.

    Returns:
        The values by the names of metrics, in the order of `METRICS`. A metric whose requirement is missing is NaN, or
        left out if it requires a tumour.

    Raises:
        UserError: surface metrics on a slanted grid without resampling.
        ValueError: a registered metric is not computed, or a computed one is not registered.
    """
    computed: dict[str, float] = {}
    for compute in dict.fromkeys(metric.compute for metric in METRICS if names is None or metric.name in names):
        group = [metric for metric in METRICS if metric.compute is compute]
        if all(is_available(metric.requires, pair) for metric in group):
            values = compute(pair)
            _check_names({metric.name for metric in group}, set(values), compute)
            computed.update(values)
        else:
            computed.update({metric.name: math.nan for metric in group if metric.requires != "tumour"})
    wanted = computed if names is None else names
    return {
        metric.name: computed[metric.name] for metric in METRICS if metric.name in computed and metric.name in wanted
    }


def metric(name: str) -> Metric | None:
    """Return the metric of this name, or None for another column of a table."""
    return next((entry for entry in METRICS if entry.name == name), None)


def title_of(column: str) -> str:
    """Return the title of a column: label and unit of a metric, or the words of another column's name."""
    registered = metric(column)
    return registered.title if registered else column.replace("_", " ")


def range_of(name: str) -> tuple[float, float]:
    """Return the range of possible means of a metric: its `limits`; otherwise from 0, or all numbers if signed."""
    registered = metric(name)
    if registered and registered.limits:
        return registered.limits
    return (-math.inf if registered is None or registered.signed else 0.0), math.inf


def averaged_names() -> list[str]:
    """Return the names of the metrics that are averaged over cases."""
    return [entry.name for entry in METRICS if entry.averaged]


def names_requiring(*requirements: Requirement) -> list[str]:
    """Return the names of the metrics with one of these requirements."""
    return [entry.name for entry in METRICS if entry.requires in requirements]


def names_with(flag: Literal["primary", "headline"]) -> list[str]:
    """Return the names of the metrics with this property."""
    return [entry.name for entry in METRICS if getattr(entry, flag)]


def definitions() -> dict[str, str]:
    """Return the definitions of all metrics, by term."""
    return {entry.term or entry.name: entry.definition for entry in METRICS}


def _check_names(registered: set[str], computed: set[str], compute: Compute) -> None:
    name = getattr(compute, "__name__", repr(compute))
    if missing := registered - computed:
        raise ValueError(f"{name} does not compute the registered metrics {sorted(missing)}")
    if unknown := computed - registered:
        raise ValueError(f"{name} computes {sorted(unknown)}, which metrics/registry.py does not register with it")


def _overlap(pair: MaskPair) -> Mapping[str, float]:
    return pair.overlap


def _surface(pair: MaskPair) -> Mapping[str, float]:
    pair.settings.check_grid(pair.grid)
    prediction, reference, spacing = pair.prediction, pair.reference, pair.grid.spacing
    if is_orthogonal(pair.grid):
        if not pair.empty:  # the distances of an empty mask are of the whole image
            prediction, reference = pair.near
    else:
        target = orthogonal_grid(pair.grid)
        prediction, reference = (onto_grid(mask, pair.grid, target) for mask in (prediction, reference))
        spacing = target.spacing
    return surface_metrics(
        prediction, reference, spacing, pair.tolerance_mm, pair.settings.definition, pair.settings.empty
    )


def _overlap_without_prompted_slices(pair: MaskPair) -> Mapping[str, float]:
    overlap = pair.overlap
    if len(pair.prompted_slices):
        overlap = overlap_without_slices(*pair.near, pair.prompted_slices)
    return {f"{name}_without_prompted_slices": value for name, value in overlap.items()}


def _volumes(pair: MaskPair) -> Mapping[str, float]:
    return volume_metrics(*pair.near, pair.grid.voxel_volume_ml)


def _leakage(pair: MaskPair) -> Mapping[str, float]:
    return {"leakage_mm": leakage_mm(*pair.near, pair.grid.spacing[0])}


def _reliability(pair: MaskPair) -> Mapping[str, float]:
    return pair.reliability.metrics


def _lesion_counts(pair: MaskPair) -> Mapping[str, float]:
    return pair.lesions[0]._asdict()


_UNPROMPTED = "over slices without a prompt; NaN where the reference has voxels on prompted slices only"
_VOLUMES = "prediction minus reference; a volume is voxels x |det affine|; percent of the reference"
_LESIONS = "components (26 neighbours); found: touched by the prediction; diameter: of the sphere of equal volume"

METRICS: tuple[Metric, ...] = (
    Metric(
        "dice",
        "Dice",
        "",
        "higher",
        "2 |P n R| / (|P| + |R|) over all voxels of the case; both masks empty: NaN, one empty: 0",
        4,
        _overlap,
        limits=(0, 1),
        primary=True,
        headline=True,
        plotted=True,
    ),
    Metric("iou", "IoU", "", "higher", "|P n R| / |P u R|, the same way", 4, _overlap, limits=(0, 1), plotted=True),
    Metric(
        "nsd",
        "NSD",
        "",
        "higher",
        "share of both surfaces within tolerance_mm of the other; both masks empty: NaN, one empty: 0",
        4,
        _surface,
        requires="surfaces",
        limits=(0, 1),
        primary=True,
        headline=True,
        plotted=True,
        tolerant=True,
    ),
    Metric(
        "hd95_mm",
        "HD95",
        "mm",
        "lower",
        "95th percentile of distances between the surfaces in mm, as `definition` has it",
        2,
        _surface,
        requires="surfaces",
        headline=True,
        plotted=True,
    ),
    Metric(
        "hd_mm",
        "HD",
        "mm",
        "lower",
        "greatest distance between the surfaces, mm",
        2,
        _surface,
        requires="surfaces",
        plotted=True,
    ),
    Metric(
        "assd_mm",
        "ASSD",
        "mm",
        "lower",
        "mean distance between the surfaces, both together, mm",
        2,
        _surface,
        requires="surfaces",
        plotted=True,
    ),
    Metric(
        "dice_without_prompted_slices",
        "Dice without prompted slices",
        "",
        "higher",
        _UNPROMPTED,
        4,
        _overlap_without_prompted_slices,
        requires="prompts",
        term="*_without_prompted_slices",
        limits=(0, 1),
        plotted=True,
    ),
    Metric(
        "iou_without_prompted_slices",
        "IoU without prompted slices",
        "",
        "higher",
        _UNPROMPTED,
        4,
        _overlap_without_prompted_slices,
        requires="prompts",
        term="*_without_prompted_slices",
        limits=(0, 1),
    ),
    Metric(
        "volume_ml_prediction",
        "predicted volume",
        "mL",
        None,
        _VOLUMES,
        2,
        _volumes,
        term="volume_error_ml",
        compared=False,
    ),
    Metric(
        "volume_ml_reference",
        "reference volume",
        "mL",
        None,
        _VOLUMES,
        2,
        _volumes,
        term="volume_error_ml",
        compared=False,
    ),
    Metric("volume_error_ml", "volume error", "mL", None, _VOLUMES, 2, _volumes, compared=False, signed=True),
    Metric(
        "volume_error_percent",
        "volume error",
        "%",
        None,
        _VOLUMES,
        2,
        _volumes,
        term="volume_error_ml",
        compared=False,
        plotted=True,
        signed=True,
    ),
    Metric(
        "fp_ml_outside_extent",
        "beyond the extent",
        "mL",
        "lower",
        "millilitres predicted on slices beyond the reference's first and last one",
        2,
        _volumes,
        compared=False,
    ),
    Metric(
        "leakage_mm",
        "leakage beyond the extent",
        "mm",
        "lower",
        "distance along the slice axis from the reference's first or last slice to the farthest predicted slice beyond "
        "it, the larger of both ends; 0 if nothing is predicted beyond; the prediction's extent if the reference is "
        "empty; NaN if both are; fp_ml_outside_extent is its volume",
        2,
        _leakage,
        compared=False,
    ),
    Metric(
        "band_entropy",
        "entropy at the boundary",
        "bits",
        None,
        "mean over the band of -p log2 p - (1 - p) log2 (1 - p), p the sigmoid of the logit; 1: undecided",
        4,
        _reliability,
        requires="logits",
        limits=(0, 1),
    ),
    Metric(
        "band_ece",
        "calibration error at the boundary",
        "",
        "lower",
        f"expected calibration error over the band: {BINS} bins of p of equal width, sum over bins of their share of "
        "voxels x |mean p - share inside the reference| (Naeini et al. 2015)",
        4,
        _reliability,
        requires="logits",
        limits=(0, 1),
    ),
    Metric(
        "band_brier",
        "Brier score at the boundary",
        "",
        "lower",
        "mean over the band of (p - 1 inside, p outside)^2 (Brier 1950)",
        4,
        _reliability,
        requires="logits",
        limits=(0, 1),
    ),
    Metric(
        "lesions_reference",
        "lesions",
        "",
        None,
        _LESIONS,
        0,
        _lesion_counts,
        requires="tumour",
        term="lesions",
        averaged=False,
    ),
    Metric(
        "lesions_found",
        "lesions found",
        "",
        "higher",
        _LESIONS,
        0,
        _lesion_counts,
        requires="tumour",
        term="lesions",
        averaged=False,
    ),
    Metric(
        "lesions_false_positive",
        "false lesions",
        "",
        "lower",
        _LESIONS,
        0,
        _lesion_counts,
        requires="tumour",
        term="lesions",
        averaged=False,
    ),
    Metric(
        "largest_lesion_mm",
        "largest lesion",
        "mm",
        None,
        _LESIONS,
        2,
        _lesion_counts,
        requires="tumour",
        term="lesions",
        averaged=False,
    ),
)

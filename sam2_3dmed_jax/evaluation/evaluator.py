"""Cases become rows: a checkpoint segments and is scored, or the files of any method are.

One row a case and class. What the predictor is told is made from the reference by a protocol, and stands in the row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from sam2_3dmed_jax.data.msd import Case
from sam2_3dmed_jax.evaluation.finished import FinishedCases
from sam2_3dmed_jax.evaluation.label_classes import LabelClass, Target, painted_values, prompted_targets
from sam2_3dmed_jax.evaluation.label_files import Pair, read_pair, read_scan
from sam2_3dmed_jax.evaluation.lesions import count_lesions
from sam2_3dmed_jax.evaluation.prompted import Prompts, deciding, prompts_of_objects, segment_clips, segment_objects
from sam2_3dmed_jax.evaluation.protocol import check_protocol
from sam2_3dmed_jax.evaluation.report.pictures import illustrate
from sam2_3dmed_jax.evaluation.scores import Measure, check_grid, score
from sam2_3dmed_jax.evaluation.summary import AUTOMATIC, PROMPTED, Row
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.io import read_grid, read_labels, read_volume

Progress = Callable[[str, int, int], None]  # (what, done, total)


@dataclass(frozen=True)
class Plan:
    """What is scored, how, and what stands in each row about the method."""

    classes: Sequence[LabelClass]
    protocol: str = ""  # how prompts were made from the reference; "": there were none
    targets: Sequence[Target] | None = None  # objects, later ones over earlier ones; None: as the classes tell
    clip_slices: int = 6  # D of the protocol 'oracle-clip'
    measure: Measure = field(default_factory=Measure)
    about: dict[str, Any] = field(default_factory=dict)  # columns: method, trained_on_these_cases, fold, seed
    pictures: int = 0  # of the worst rows, for a report

    def __post_init__(self) -> None:
        if self.protocol:
            check_protocol(self.protocol)
        painted_values(self.objects)

    @property
    def objects(self) -> list[Target]:
        """The label values of each object."""
        return prompted_targets(self.classes) if self.targets is None else list(self.targets)


def evaluate_model(
    predictor: VolumePredictor,
    cases: Sequence[Case],
    plan: Plan,
    progress: Progress | None = None,
    finished: FinishedCases | None = None,
) -> list[Row]:
    """Segment and score cases; the objects of a case are those of one session.

    Args:
        predictor: the model.
        cases: labelled scans.
        plan: with a protocol.
        progress: called with (what, done, total) after each case.
        finished: cases that are done already; those done here are added.

    Returns:
        Rows with the keys `results.COLUMNS`, of tumours "lesions", and of the worst ones `report.pictures.PICTURE`, in
        the order of cases and classes.

    Raises:
        UserError: no such protocol, or files that cannot be read or do not fit each other.
    """
    check_protocol(plan.protocol)
    for case in cases:  # before hours are spent on others
        check_grid(read_grid(case.image), plan.measure)
    rows: list[Row] = []
    for done, case in enumerate(cases, 1):
        found = finished.get(case.id) if finished else None
        if found is None:
            found = _evaluate_case(predictor, case, plan, rows)
            if finished:
                finished.add(case.id, found)
        rows += found
        if progress:
            progress("evaluating cases", done, len(cases))
    return rows


def evaluate_files(
    pairs: Sequence[Pair],
    plan: Plan,
    progress: Progress | None = None,
    remap: dict[int, int] | None = None,
    resample: bool = False,
) -> list[Row]:
    """Score label maps that any method wrote.

    Args:
        pairs: of files; a prediction that is missing counts as empty.
        plan: a protocol declares that the method was prompted that way, for every object.
        progress: called with (what, done, total) after each case.
        remap: label values of predictions, and what they become.
        resample: move predictions to their reference's grid by nearest neighbour.

    Returns:
        As `evaluate_model`.

    Raises:
        UserError: a file cannot be read, or a prediction lies on another grid than its reference.
    """
    rows: list[Row] = []
    for done, pair in enumerate(pairs, 1):
        labels, reference, grid = read_pair(pair, remap or {}, resample)
        found = score_labels(pair.case, labels, reference, grid, plan, pair.prediction is None)
        _illustrate(rows, found, plan, labels, reference, grid, partial(read_scan, pair, grid))
        rows += found
        if progress:
            progress("evaluating files", done, len(pairs))
    return rows


def score_labels(
    case: str, labels: np.ndarray, reference: np.ndarray, grid: Grid, plan: Plan, missing: bool = False
) -> list[Row]:
    """Rows of a label map that is there already.

    Args:
        case: its id.
        labels: integers `[D, H, W]`.
        reference: integers `[D, H, W]`.
        grid: of both.
        plan: its protocol, if any, tells how the method was prompted.
        missing: there is no file, and `labels` are empty.

    Raises:
        UserError: surfaces on a slanted grid, without resampling.
    """
    prompts = _prompts(reference, grid, plan) if plan.protocol else {}
    return rows_of(case, labels, reference, grid, prompts, plan, missing=missing)


def _evaluate_case(predictor: VolumePredictor, case: Case, plan: Plan, before: Sequence[Row]) -> list[Row]:
    volume = read_volume(case.image)
    reference = read_labels(case.label, volume)
    prompts = _prompts(reference, volume.grid, plan)
    start = time.perf_counter()
    if plan.protocol == "oracle-clip":
        labels = segment_clips(predictor, volume, reference, prompts, plan.clip_slices)
    else:
        labels = segment_objects(predictor, volume, prompts)
    seconds = time.perf_counter() - start
    rows = rows_of(case.id, labels, reference, volume.grid, prompts, plan, seconds)
    window = predictor.model.info.preprocessing.window
    _illustrate(before, rows, plan, labels, reference, volume.grid, lambda: volume, window)
    return rows


def _illustrate(
    before: Sequence[Row],
    rows: Sequence[Row],
    plan: Plan,
    labels: np.ndarray,
    reference: np.ndarray,
    grid: Grid,
    scan: Callable[[], Volume | None],
    window: str = "soft_tissue",
) -> None:
    def masks(place: int) -> tuple[np.ndarray, np.ndarray]:
        entry = plan.classes[place]
        return entry.mask(labels), entry.mask(reference)

    illustrate(before, rows, plan.pictures, masks, grid.spacing, scan, window)


def _prompts(reference: np.ndarray, grid: Grid, plan: Plan) -> Prompts:
    return prompts_of_objects(plan.protocol, reference, grid.spacing, plan.objects, plan.clip_slices)


def rows_of(
    case: str,
    labels: np.ndarray,
    reference: np.ndarray,
    grid: Grid,
    prompts: Prompts,
    plan: Plan,
    seconds: float = math.nan,
    missing: bool = False,
) -> list[Row]:
    """Rows of a label map, one a class of the plan, with what its prompts told.

    Raises:
        UserError: surfaces on a slanted grid, without resampling.
    """
    rows = []
    for entry in plan.classes:
        told = deciding(entry.values, prompts)
        prediction, actual = entry.mask(labels), entry.mask(reference)
        slices = sorted({prompt.slice for prompt in told})
        row = {
            "case": case,
            "class": entry.name,
            **score(prediction, actual, grid, slices, entry.tolerance_mm, plan.measure),
            "missing": "yes" if missing else "no",
            "block": PROMPTED if plan.protocol else AUTOMATIC,
            "protocol": plan.protocol or "none",
            "prompt_source": "reference" if told else "none",
            "n_prompts": len(told),
            "prompt_slices": " ".join(map(str, slices)),
            **plan.about,
            "labels": "+".join(map(str, entry.values)),
            "tolerance_mm": entry.tolerance_mm,
            "definition": plan.measure.definition if plan.measure.surfaces else "",
            "empty_policy": plan.measure.empty if plan.measure.surfaces else "",
            "seconds": seconds,
        }
        if entry.tumour:
            counts, lesions = count_lesions(prediction, actual, grid.voxel_volume_ml)
            row |= {**counts, "lesions": lesions}
        rows.append(row)
    return rows

"""Cases become rows: a checkpoint segments and is scored, or the files of any method are.

One row a case and class. What the predictor is told is made from the reference by a protocol, and stands in the row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.data.datasets import Case
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.cost import UNKNOWN, Meter
from sam2_3dmed_jax.evaluation.journal import FinishedCases
from sam2_3dmed_jax.evaluation.label_files import Pair, read_pair, read_scan
from sam2_3dmed_jax.evaluation.nearest_component import nearest_components
from sam2_3dmed_jax.evaluation.prompted_segmentation import clip_sessions, segment_clips, segment_objects
from sam2_3dmed_jax.evaluation.report.worst_cases import illustrate
from sam2_3dmed_jax.evaluation.scores import check_grid, score
from sam2_3dmed_jax.evaluation.settings import Plan
from sam2_3dmed_jax.evaluation.summary import Row
from sam2_3dmed_jax.inference.automatic import AutomaticPredictor
from sam2_3dmed_jax.inference.predictor import Result, VolumePredictor
from sam2_3dmed_jax.inference.segmentation_flops import SegmentationFlops, flops_of_windows
from sam2_3dmed_jax.metrics import reliability
from sam2_3dmed_jax.metrics.lesions import count_lesions
from sam2_3dmed_jax.metrics.reliability import object_reliability
from sam2_3dmed_jax.prompts.protocols import ObjectPrompts, check_protocol, deciding, prompts_of_objects
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.io import read_grid, read_labels, read_volume, write_labels

Progress = Callable[[str, int, int], None]  # (what, done, total)
NOT_MEASURED = {"bd": "", **UNKNOWN}  # of label maps that are there already


def evaluate_model(
    predictor: VolumePredictor | AutomaticPredictor,
    cases: Sequence[Case],
    plan: Plan,
    progress: Progress | None = None,
    finished: FinishedCases | None = None,
) -> list[Row]:
    """Segment and score cases; the objects of a case are those of one session.

    Args:
        predictor: the model.
        cases: labelled scans.
        plan: with a protocol, or without one for a model that takes no prompts.
        progress: called with (what, done, total) after each case.
        finished: cases that are done already; those done here are added.

    Returns:
        Rows with the keys `results.COLUMNS`, of tumours "lesions", of objects "reliability", and of the worst ones
        `report.pictures.PICTURE`, in the order of cases and classes.

    Raises:
        UserError: no such protocol, one for a model that takes no prompts, or files that cannot be read or do not fit
            each other.
    """
    if not isinstance(predictor, AutomaticPredictor):
        check_protocol(plan.protocol)
    elif plan.protocol:
        raise UserError(f"--protocol: a U-Net takes no prompts, so none of '{plan.protocol}'; leave it out")
    for case in cases:  # before hours are spent on others
        check_grid(read_grid(case.image), plan.measure)
    flops = None if isinstance(predictor, AutomaticPredictor) else SegmentationFlops(predictor)
    rows: list[Row] = []
    for done, case in enumerate(cases, 1):
        found = finished.get(case.id) if finished else None
        if found is None:
            found = _evaluate_case(predictor, case, plan, flops, rows)
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
    finished: FinishedCases | None = None,
) -> list[Row]:
    """Score label maps that any method wrote.

    Args:
        pairs: of files; a prediction that is missing counts as empty.
        plan: a protocol declares that the method was prompted that way, for every object.
        progress: called with (what, done, total) after each case.
        remap: label values of predictions, and what they become.
        resample: move predictions to their reference's grid by nearest neighbour.
        finished: cases that are done already; those done here are added.

    Returns:
        As `evaluate_model`.

    Raises:
        UserError: a file cannot be read, or a prediction lies on another grid than its reference.
    """
    rows: list[Row] = []
    for done, pair in enumerate(pairs, 1):
        found = finished.get(pair.case) if finished else None
        if found is None:
            labels, reference, grid = read_pair(pair, remap or {}, resample)
            if plan.nearest_component:
                labels = nearest_components(labels, grid, plan.objects, _prompts(reference, grid, plan))
            found = score_labels(pair.case, labels, reference, grid, plan, pair.prediction is None)
            _illustrate(rows, found, plan, labels, reference, grid, partial(read_scan, pair, grid))
            if finished:
                finished.add(pair.case, found)
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


def _evaluate_case(
    predictor: VolumePredictor | AutomaticPredictor,
    case: Case,
    plan: Plan,
    flops: SegmentationFlops | None,
    before: Sequence[Row],
) -> list[Row]:
    volume = read_volume(case.image)
    reference = read_labels(case.label, volume)
    missing = plan.prompt_files is not None and case.id not in plan.prompt_files
    shown = reference
    if plan.prompt_files is not None:
        shown = np.zeros_like(reference) if missing else read_labels(plan.prompt_files[case.id], volume)
    prompts = _prompts(shown, volume.grid, plan) if plan.protocol else {}
    labels, result, own = _segment(predictor, volume, reference, prompts, plan, flops)
    if plan.save:
        write_labels(Path(plan.save, f"{case.id}.nii.gz"), labels.astype(np.int32), volume)
    rows = rows_of(case.id, labels, reference, volume.grid, prompts, plan, own, missing)
    for row, entry in zip(rows, plan.classes, strict=True):
        told = [prompts[target] for target in prompts if set(target) == set(entry.values)]
        if result and told:
            mask = entry.mask(reference)
            row |= object_reliability(result.logits_of(told[0][0].object_id), mask, volume.grid, plan.band_mm)
    window = predictor.model.info.preprocessing.window
    _illustrate(before, rows, plan, labels, reference, volume.grid, lambda: volume, window)
    return rows


def _segment(
    predictor: VolumePredictor | AutomaticPredictor,
    volume: Volume,
    reference: np.ndarray,
    prompts: ObjectPrompts,
    plan: Plan,
    flops: SegmentationFlops | None,
) -> tuple[np.ndarray, Result | None, Row]:
    """Labels `[D, H, W]`, the logits of all slices where one session made them, and what it cost."""
    if isinstance(predictor, AutomaticPredictor):
        with Meter() as meter:
            labels = predictor.segment(volume)
        return labels, None, {"bd": "no", **meter.columns(flops_of_windows(predictor, volume))}
    assert flops is not None
    result = None
    sessions = [(len(volume.array), [prompt for own in prompts.values() for prompt in own])]
    with Meter() as meter:
        if plan.protocol == "oracle-clip":
            labels = segment_clips(predictor, volume, reference, prompts, plan.clip_slices)
            clips = clip_sessions(reference, prompts, plan.clip_slices)
            sessions = [(stop - start, moved) for start, stop, moved in clips]
        else:
            found = segment_objects(predictor, volume, prompts)
            labels, result = found.labels, found.result
    has_boundary = "yes" if predictor.model.info.model.bd else "no"
    return labels, result, {"bd": has_boundary, **meter.columns(flops(sessions))}


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


def _prompts(reference: np.ndarray, grid: Grid, plan: Plan) -> ObjectPrompts:
    return prompts_of_objects(plan.protocol, reference, grid.spacing, plan.objects, plan.clip_slices)


def rows_of(
    case: str,
    labels: np.ndarray,
    reference: np.ndarray,
    grid: Grid,
    prompts: ObjectPrompts,
    plan: Plan,
    own: Mapping[str, Any] = NOT_MEASURED,
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
            "block": plan.block,
            "protocol": plan.told_protocol,
            "prompt_source": ("reference" if plan.prompt_files is None else "predictions") if told else "none",
            "n_prompts": len(told),
            "prompt_slices": " ".join(map(str, slices)),
            "band_mm": math.nan,
            **reliability.UNKNOWN,
            **own,
            **plan.about,
            "labels": "+".join(map(str, entry.values)),
            "tolerance_mm": entry.tolerance_mm,
            "definition": plan.measure.definition if plan.measure.surfaces else "",
            "empty_policy": plan.measure.empty if plan.measure.surfaces else "",
        }
        if entry.tumour:
            counts, lesions = count_lesions(prediction, actual, grid.voxel_volume_ml)
            row |= {**counts, "lesions": lesions}
        rows.append(row)
    return rows

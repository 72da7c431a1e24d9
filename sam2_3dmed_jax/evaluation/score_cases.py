"""Scoring of cases: a checkpoint segments scans, or the files of any method are read, and each class gets a row.

Prompts are made from the reference by a protocol, which is recorded in the row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sam2_3dmed_jax.config import DEFAULT_CT_WINDOW
from sam2_3dmed_jax.data.datasets import LabelledCase
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.cost import UNKNOWN, Meter
from sam2_3dmed_jax.evaluation.interactions import Interaction
from sam2_3dmed_jax.evaluation.interactive import Step, correct_volume, score_step, total_cost
from sam2_3dmed_jax.evaluation.journal import Journal
from sam2_3dmed_jax.evaluation.label_files import FilePair, read_pair, read_scan, step_folder
from sam2_3dmed_jax.evaluation.nearest_component import nearest_components
from sam2_3dmed_jax.evaluation.prompted_segmentation import clip_sessions, segment_clips, segment_objects
from sam2_3dmed_jax.evaluation.report.worst_cases import illustrate
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
from sam2_3dmed_jax.inference.automatic import AutomaticPredictor
from sam2_3dmed_jax.inference.predictor import Result, VolumePredictor
from sam2_3dmed_jax.inference.segmentation_flops import SegmentationFlops, sliding_window_flops
from sam2_3dmed_jax.inference.zoom import zoomed_sessions
from sam2_3dmed_jax.metrics.mask_pair import MaskPair
from sam2_3dmed_jax.metrics.registry import compute_metrics
from sam2_3dmed_jax.prompts.protocols import ObjectPrompts, check_protocol, object_prompts, relevant_prompts
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.io import check_readable, read_grid, read_labels, read_volume, write_labels
from sam2_3dmed_jax.volume.label_classes import LabelClass
from sam2_3dmed_jax.volume.label_layers import LabelLayers, flat_labels
from sam2_3dmed_jax.volume.zoom import Logits, zoom_text

NOT_MEASURED = {"bd": "", "zoom": "", **UNKNOWN}  # columns of the run that produced the labels, for labels from files


class _CaseSegmentation(NamedTuple):
    """A case as a model segments it."""

    labels: np.ndarray  # integers [D, H, W]
    result: Result | None  # logits of all slices, if one session produced them
    run_columns: Mapping[str, Any]  # "bd", "zoom", and the columns of `CaseCost`


def evaluate_model(
    predictor: VolumePredictor | AutomaticPredictor,
    cases: Sequence[LabelledCase],
    settings: EvaluationSettings,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[ScoreRow]:
    """Segment and score cases; all objects of a case share one session.

    Args:
        predictor: the model.
        cases: labelled scans.
        settings: with a protocol, or without one for a model that takes no prompts.
        progress: called after each case.
        journal: of finished cases, which are not segmented again; the newly finished ones are added.

    Returns:
        One row per case and class, in their order; the worst ones have a picture.

    Raises:
        UserError: an unknown protocol, a protocol for a model that takes no prompts, or files that cannot be read or do
            not fit each other.
    """
    if not isinstance(predictor, AutomaticPredictor):
        if not settings.interaction:
            check_protocol(settings.protocol)
    elif settings.protocol:
        raise UserError(f"--protocol: a U-Net takes no prompts, so '{settings.protocol}' does not apply; leave it out")
    for case in cases:  # all are checked before hours are spent on the first ones
        settings.metrics.check_grid(read_grid(case.image))
    unfinished = [case for case in cases if journal is None or journal.get(case.id) is None]
    check_readable([_files(case, settings) for case in unfinished], progress)
    flops = None if isinstance(predictor, AutomaticPredictor) else SegmentationFlops(predictor)
    rows: list[ScoreRow] = []
    for done, case in enumerate(cases, 1):
        case_rows = journal.get(case.id) if journal else None
        if case_rows is None:
            case_rows = _evaluate_case(predictor, case, settings, flops, rows)
            if journal:
                journal.add(case.id, case_rows)
        rows += case_rows
        if progress:
            progress("evaluating cases", done, len(cases))
    return rows


def evaluate_files(
    pairs: Sequence[FilePair],
    settings: EvaluationSettings,
    progress: Progress | None = None,
    remap: dict[int, int] | None = None,
    resample: bool = False,
    journal: Journal | None = None,
) -> list[ScoreRow]:
    """Score the label maps of any method; for the protocol 'interactive', see `evaluate_steps`.

    Args:
        pairs: of files; a missing prediction counts as empty.
        settings: a protocol declares that every object of the method was prompted that way.
        progress: called after each case.
        remap: label values of predictions, and their new values.
        resample: move predictions to the grid of their reference by nearest neighbour.
        journal: of finished cases, which are not scored again; the newly finished ones are added.

    Returns:
        As `evaluate_model`.

    Raises:
        UserError: a file cannot be read, or the grid of a prediction differs from the grid of its reference.
    """
    rows: list[ScoreRow] = []
    for done, pair in enumerate(pairs, 1):
        case_rows = journal.get(pair.case) if journal else None
        if case_rows is None:
            labels, reference, grid = read_pair(pair, remap or {}, resample)
            if settings.nearest_component:
                prompts = _prompts(reference, grid, settings)
                labels = LabelLayers((nearest_components(labels.flat(), grid, settings.objects, prompts),))
            case_rows = score_labels(pair.case, labels, reference, grid, settings, pair.prediction is None)
            _illustrate(
                rows, case_rows, settings, labels, reference, grid, partial(read_scan, pair, grid, settings.modality)
            )
            if journal:
                journal.add(pair.case, case_rows)
        rows += case_rows
        if progress:
            progress("evaluating files", done, len(pairs))
    return rows


def evaluate_steps(
    steps: Sequence[Sequence[FilePair]],
    settings: EvaluationSettings,
    progress: Progress | None = None,
    remap: dict[int, int] | None = None,
    resample: bool = False,
    journal: Journal | None = None,
) -> list[ScoreRow]:
    """Score the label maps of any method after each interaction; the last one makes the scores of a row.

    Args:
        steps: pairs of files of each interaction, with cases in the same order; a missing prediction counts as empty.
        settings: with the protocol 'interactive'.
        progress: called after each case.
        remap: as in `evaluate_files`.
        resample: as in `evaluate_files`.
        journal: as in `evaluate_files`.

    Returns:
        As `evaluate_model`.

    Raises:
        UserError: as `evaluate_files`.
    """
    rows: list[ScoreRow] = []
    for done, pairs in enumerate(zip(*steps, strict=True), 1):
        last = pairs[-1]
        case_rows = journal.get(last.case) if journal else None
        if case_rows is None:
            scores = []
            for number, pair in enumerate(pairs):
                labels, reference, grid = read_pair(pair, remap or {}, resample)
                scores.append(score_step(number, labels, reference, grid, settings))
            missing = last.prediction is None
            case_rows = score_classes(last.case, labels, reference, grid, {}, settings, missing=missing)
            _add_interactions(case_rows, scores)
            _illustrate(
                rows, case_rows, settings, labels, reference, grid, partial(read_scan, last, grid, settings.modality)
            )
            if journal:
                journal.add(last.case, case_rows)
        rows += case_rows
        if progress:
            progress("evaluating files", done, len(steps[0]))
    return rows


def score_labels(
    case: str,
    labels: np.ndarray | LabelLayers,
    reference: np.ndarray | LabelLayers,
    grid: Grid,
    settings: EvaluationSettings,
    missing: bool = False,
) -> list[ScoreRow]:
    """Score an existing label map, with the prompts that the protocol makes from its reference.

    Args:
        case: its id.
        labels: integers `[D, H, W]`, or layers of them.
        reference: integers `[D, H, W]`, or layers of them.
        grid: of both.
        settings: its protocol, if any, declares how the method was prompted.
        missing: the file does not exist, and `labels` are empty.

    Raises:
        UserError: surface metrics on a slanted grid without resampling.
    """
    prompts = _prompts(reference, grid, settings) if settings.protocol else {}
    return score_classes(case, labels, reference, grid, prompts, settings, missing=missing)


def score_classes(
    case: str,
    labels: np.ndarray | LabelLayers,
    reference: np.ndarray | LabelLayers,
    grid: Grid,
    prompts: ObjectPrompts,
    settings: EvaluationSettings,
    run_columns: Mapping[str, Any] = NOT_MEASURED,
    missing: bool = False,
    logits: Mapping[str, Logits | None] | None = None,
) -> list[ScoreRow]:
    """Score a label map: one row per class of the settings.

    Args:
        case: its id.
        labels: integers `[D, H, W]`, or layers of them.
        reference: integers `[D, H, W]`, or layers of them.
        grid: of both.
        prompts: that the method received, by object.
        settings: of the evaluation.
        run_columns: columns of the run that produced the labels.
        missing: the file does not exist, and `labels` are empty.
        logits: float32 `[D, S/4, S/4]` by class name, of classes that are prompted objects.

    Raises:
        UserError: surface metrics on a slanted grid without resampling.
    """
    rows = []
    for entry in settings.classes:
        relevant = relevant_prompts(entry.values, prompts)
        slices = sorted({prompt.slice for prompt in relevant})
        pair = MaskPair(
            entry.mask(labels),
            entry.mask(reference),
            grid,
            prompted_slices=slices,
            tolerance_mm=entry.tolerance_mm,
            settings=settings.metrics,
            tumour=entry.tumour,
            logits=(logits or {}).get(entry.name),
            band_mm=settings.band_mm,
        )
        source = "reference" if settings.prompt_files is None else "predictions"
        row = {
            "case": case,
            "class": entry.name,
            **compute_metrics(pair),
            "empty": pair.empty,
            "missing": "yes" if missing else "no",
            "block": settings.block,
            "protocol": settings.protocol_column,
            "prompt_source": source if relevant else "none",
            "n_prompts": len(relevant),
            "prompt_slices": " ".join(map(str, slices)),
            "band_mm": math.nan,
            **run_columns,
            **settings.method_columns,
            "labels": "+".join(map(str, entry.values)),
            "tolerance_mm": entry.tolerance_mm,
            "definition": settings.metrics.definition if settings.metrics.surfaces else "",
            "empty_policy": settings.metrics.empty if settings.metrics.surfaces else "",
        }
        if entry.tumour:
            row["lesions"] = pair.lesions[1]
        if pair.by_distance:
            row["by_distance"] = pair.by_distance
        if pair.reliability.bins:
            row |= {"band_mm": settings.band_mm, "reliability": pair.reliability.bins}
        rows.append(row)
    return rows


def _files(case: LabelledCase, settings: EvaluationSettings) -> tuple[str, ...]:
    """Return the image of a case and its label maps, of which prompts may be made."""
    prompt_file = (settings.prompt_files or {}).get(case.id)
    return (case.image, case.label, *([prompt_file] if prompt_file else []))


def _evaluate_case(
    predictor: VolumePredictor | AutomaticPredictor,
    case: LabelledCase,
    settings: EvaluationSettings,
    flops: SegmentationFlops | None,
    before: Sequence[ScoreRow],
) -> list[ScoreRow]:
    sources = replace(settings.modality, preprocessing=predictor.model.info.preprocessing)
    volume = read_volume(case.image, modality=sources)
    reference = read_labels(case.label, volume)
    missing = settings.prompt_files is not None and case.id not in settings.prompt_files
    prompt_labels = reference
    if settings.prompt_files is not None:
        prompt_labels = np.zeros_like(reference) if missing else read_labels(settings.prompt_files[case.id], volume)
    scores: list[dict[str, Interaction]] = []
    if settings.interaction:
        assert isinstance(predictor, VolumePredictor) and flops is not None
        last, run_columns = _correct(predictor, case.id, volume, reference, settings, flops, scores)
        labels, result, prompts = last.labels, last.result, last.prompts
    else:
        prompts = _prompts(prompt_labels, volume.grid, settings) if settings.protocol else {}
        labels, result, run_columns = _segment(predictor, volume, reference, prompts, settings, flops)
    if settings.save and not settings.interaction:
        write_labels(Path(settings.save, f"{case.id}.nii.gz"), labels.astype(np.int32), volume)
    logits = _class_logits(result, prompts, settings.classes) if result else {}
    rows = score_classes(
        case.id, labels, reference, volume.grid, prompts, settings, run_columns, missing=missing, logits=logits
    )
    _add_interactions(rows, scores)
    window = predictor.model.info.preprocessing.window
    _illustrate(before, rows, settings, labels, reference, volume.grid, lambda: volume, window)
    return rows


def _class_logits(result: Result, prompts: ObjectPrompts, classes: Sequence[LabelClass]) -> dict[str, Logits | None]:
    """Return the logits of the classes that are prompted objects, by name.

    An organ minus the tumour that is painted over it is not an object, so it has no logits.
    """
    ids = {frozenset(target): target_prompts[0].object_id for target, target_prompts in prompts.items()}
    prompted = [entry for entry in classes if frozenset(entry.values) in ids]
    return {entry.name: result.logits_of(ids[frozenset(entry.values)]) for entry in prompted}


def _segment(
    predictor: VolumePredictor | AutomaticPredictor,
    volume: Volume,
    reference: np.ndarray,
    prompts: ObjectPrompts,
    settings: EvaluationSettings,
    flops: SegmentationFlops | None,
) -> _CaseSegmentation:
    if isinstance(predictor, AutomaticPredictor):
        with Meter() as meter:
            labels = predictor.segment(volume)
        columns = meter.columns(sliding_window_flops(predictor, volume))
        return _CaseSegmentation(labels, None, {"bd": "no", "zoom": "off", **columns})
    assert flops is not None
    result = None
    every_prompt = [prompt for target_prompts in prompts.values() for prompt in target_prompts]
    sessions = [(len(volume.array), every_prompt)]
    with Meter() as meter:
        if settings.protocol == "oracle-clip":
            labels = segment_clips(predictor, volume, reference, prompts, settings.clip_slices)
            clips = clip_sessions(reference, prompts, settings.clip_slices)
            sessions = [(stop - start, clip_prompts) for start, stop, clip_prompts in clips]
        else:
            segmentation = segment_objects(predictor, volume, prompts, settings.zoom)
            labels, result = segmentation.labels, segmentation.result
            sessions = zoomed_sessions(result, every_prompt) or sessions
    run = {"bd": "yes" if predictor.model.info.sam2.bd else "no", "zoom": zoom_text(settings.zoom)}
    return _CaseSegmentation(labels, result, {**run, **meter.columns(flops(sessions))})


def _correct(
    predictor: VolumePredictor,
    case: str,
    volume: Volume,
    reference: np.ndarray,
    settings: EvaluationSettings,
    flops: SegmentationFlops,
    scores: list[dict[str, Interaction]],
) -> tuple[Step, Mapping[str, Any]]:
    """Segment a case and correct it by clicks; add the scores after each interaction to `scores`.

    Returns:
        The last step, and the columns of the run.
    """
    assert settings.interaction is not None
    costs, rounds = [], []
    steps = correct_volume(predictor, volume, reference, settings.objects, settings.interaction)
    for number, step in enumerate(steps):
        scores.append(score_step(number, step.labels, reference, volume.grid, settings, step))
        if settings.save:
            file = Path(settings.save, step_folder(number), f"{case}.nii.gz")
            write_labels(file, step.labels.astype(np.int32), volume)
        if step.cost:
            costs.append(step.cost)
            rounds.append([prompt for of_object in step.prompts.values() for prompt in of_object])
    cost = total_cost(costs, flops.corrected(len(volume.array), rounds)) or UNKNOWN
    return step, {"bd": "yes" if predictor.model.info.sam2.bd else "no", **cost}


def _add_interactions(rows: Sequence[ScoreRow], scores: Sequence[Mapping[str, Interaction]]) -> None:
    """Add the scores after each interaction to the rows of the classes that the case has."""
    for row in rows:
        if interactions := [of_class[row["class"]] for of_class in scores if row["class"] in of_class]:
            row["interactions"] = interactions


def _illustrate(
    before: Sequence[ScoreRow],
    rows: Sequence[ScoreRow],
    settings: EvaluationSettings,
    labels: np.ndarray | LabelLayers,
    reference: np.ndarray | LabelLayers,
    grid: Grid,
    scan: Callable[[], Volume | None],
    window: str = DEFAULT_CT_WINDOW,
) -> None:
    def masks(place: int) -> tuple[np.ndarray, np.ndarray]:
        entry = settings.classes[place]
        return entry.mask(labels), entry.mask(reference)

    illustrate(before, rows, settings.pictures, masks, grid.spacing, scan, window)


def _prompts(reference: np.ndarray | LabelLayers, grid: Grid, settings: EvaluationSettings) -> ObjectPrompts:
    return object_prompts(
        settings.protocol, flat_labels(reference), grid.spacing, settings.objects, settings.clip_slices
    )

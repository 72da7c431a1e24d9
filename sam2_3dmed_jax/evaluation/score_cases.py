"""Scoring of cases that a checkpoint segments: each class of a case gets a row.

Prompts are made from the reference by a protocol, which is recorded in the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sam2_3dmed_jax.config import DEFAULT_CT_WINDOW
from sam2_3dmed_jax.data.datasets import LabelledCase
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.class_rows import add_interactions, prompts_of_labels, score_classes
from sam2_3dmed_jax.evaluation.cost import UNKNOWN, Meter
from sam2_3dmed_jax.evaluation.interactions import Interaction
from sam2_3dmed_jax.evaluation.interactive import Step, correct_volume, score_step, total_cost
from sam2_3dmed_jax.evaluation.journal import Journal
from sam2_3dmed_jax.evaluation.label_files import step_folder
from sam2_3dmed_jax.evaluation.prompted_segmentation import clip_sessions, segment_clips, segment_objects
from sam2_3dmed_jax.evaluation.report.worst_cases import illustrate
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
from sam2_3dmed_jax.inference.automatic import AutomaticPredictor
from sam2_3dmed_jax.inference.predictor import Result, VolumePredictor
from sam2_3dmed_jax.inference.segmentation_flops import SegmentationFlops, sliding_window_flops
from sam2_3dmed_jax.inference.zoom import zoomed_sessions
from sam2_3dmed_jax.prompts.protocols import ObjectPrompts, check_protocol
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.io import check_readable, read_grid, read_labels, read_volume, write_labels
from sam2_3dmed_jax.volume.label_classes import LabelClass
from sam2_3dmed_jax.volume.label_layers import LabelLayers
from sam2_3dmed_jax.volume.zoom import Logits, zoom_text


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
        prompts = prompts_of_labels(prompt_labels, volume.grid, settings) if settings.protocol else {}
        labels, result, run_columns = _segment(predictor, volume, reference, prompts, settings, flops)
    if settings.save and not settings.interaction:
        write_labels(Path(settings.save, f"{case.id}.nii.gz"), labels.astype(np.int32), volume)
    logits = _class_logits(result, prompts, settings.classes) if result else {}
    rows = score_classes(
        case.id, labels, reference, volume.grid, prompts, settings, run_columns, missing=missing, logits=logits
    )
    add_interactions(rows, scores)
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

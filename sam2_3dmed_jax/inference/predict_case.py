"""Prediction from files to files: one case or many are read, segmented from their prompts and written.

A case writes all of its files or none, and the label map last, so that an existing label map means a finished case.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.errors import UserError, path_errors_as_mistakes
from sam2_3dmed_jax.inference.keep_component import KeepRule, MaskFilter, filter_labels, mask_filter
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.inference.segment import Segmentation
from sam2_3dmed_jax.inference.segmentation_record import (
    ModelRecord,
    SegmentationRecord,
    check_record_path,
    object_title,
    record_path,
    record_text,
    segmentation_record,
    warn_about,
)
from sam2_3dmed_jax.inference.statistics_table import read_table, statistics_rows, table_text
from sam2_3dmed_jax.inference.zoom import segment_with_zoom
from sam2_3dmed_jax.prompts.automatic_start import StartSettings
from sam2_3dmed_jax.prompts.case_table import PredictionCase
from sam2_3dmed_jax.prompts.files import add_labels
from sam2_3dmed_jax.prompts.flags import gather_prompts
from sam2_3dmed_jax.prompts.prompt_types import prompt_flags
from sam2_3dmed_jax.prompts.voxel_prompts import VolumePrompts, merge_prompts
from sam2_3dmed_jax.runtime.atomic_files import atomic_paths, write_text
from sam2_3dmed_jax.runtime.output_plan import Input, Output, OutputFile, check_outputs
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel
from sam2_3dmed_jax.volume.dicom_seg_source import SegmentationSource
from sam2_3dmed_jax.volume.formats import segmentation_suffixes, suffix_of
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.io import image_files, prepare_segmentation, read_labels, read_volume, write_segmentation
from sam2_3dmed_jax.volume.modality import ModalitySources
from sam2_3dmed_jax.volume.zoom import OFF, Zoom


@dataclass(frozen=True)
class OutputFiles:
    """The files to write for a case."""

    labels: str
    separate: bool = False  # also one file per object, with its whole mask where objects overlap
    overlay: str | None = None  # PNG
    planes: str | None = None  # PNG


@dataclass(frozen=True)
class CaseSettings:
    """How cases are read, finished and drawn; the same for all cases of a command."""

    resample: bool = False  # put irregular DICOM slices on a regular grid
    skip_unreadable: bool = False  # leave out damaged files of a DICOM folder
    modality: ModalitySources = field(default_factory=ModalitySources)  # what is known besides the file
    keep_component: KeepRule | None = None  # remove the other components of each mask
    window: str | None = None  # of pictures; None: see `pictures.display_window`
    labels: Mapping[int, ObjectLabel] = field(default_factory=dict)  # names, codes and colours that flags give
    statistics: str | None = None  # table (CSV) of all objects
    zoom: Zoom = OFF  # of each object
    start: StartSettings = field(default_factory=StartSettings)  # how prompts are drawn from label maps


@dataclass(frozen=True, eq=False)
class Job:
    """A case that has been read and checked."""

    case: str
    volume: Volume
    prompt_set: VolumePrompts  # merged to one prompt per object and slice
    labels: dict[int, ObjectLabel]  # of all objects, by id
    reference: np.ndarray | None
    outputs: OutputFiles
    object_files: dict[int, Path]  # files of single objects, by id
    dicom_source: SegmentationSource | None  # the series that DICOM files refer to; None for NIfTI
    settings: CaseSettings
    keep: MaskFilter | None  # of `settings.keep_component`


def read_job(case: PredictionCase, outputs: OutputFiles, settings: CaseSettings = CaseSettings()) -> Job:
    """Read a case and check that its files and prompts fit.

    Args:
        case: the image, its prompts and the reference.
        outputs: the files to write.
        settings: of the command.

    Raises:
        UserError: a file or prompt does not fit, or an output would replace an input or a file of another kind.
    """
    volume = read_volume(
        case.image,
        index=case.index,
        resample=settings.resample,
        skip_unreadable=settings.skip_unreadable,
        modality=settings.modality,
    )
    check_record_path(outputs.labels)
    prompt_set = add_labels(gather_prompts(case.prompts, volume, settings.start), settings.labels, "--classes")
    prompt_set = replace(prompt_set, prompts=merge_prompts(prompt_set.prompts))
    reference = read_labels(case.reference, volume) if case.reference else None
    labels = prompt_set.labels()
    separate = object_files(outputs.labels, list(labels), prompt_set.names) if outputs.separate else {}
    check_outputs(
        planned_outputs(outputs, separate.values(), settings.statistics),
        [*case_inputs(case), *(Input("the mask of a prompt file", file) for file in prompt_set.files)],
    )
    source = prepare_segmentation(outputs.labels, volume, labels)
    keep = mask_filter(rule, prompt_set.prompts, volume.canonical_affine) if (rule := settings.keep_component) else None
    return Job(case.name, volume, prompt_set, labels, reference, outputs, separate, source, settings, keep)


def planned_outputs(outputs: OutputFiles, separate: Iterable[Path], statistics: str | None) -> list[Output]:
    """Return the files that a case writes.

    Args:
        outputs: the files that the user names.
        separate: the files of single objects.
        statistics: the table of all cases.
    """
    named = {"--overlay": outputs.overlay, "--planes": outputs.planes, "--statistics": statistics}
    return [
        OutputFile("--out", outputs.labels),
        OutputFile("--out", record_path(outputs.labels)),
        *(OutputFile(flag, path) for flag, path in named.items() if path),
        *(OutputFile("--separate", path) for path in separate),
    ]


def case_inputs(case: PredictionCase) -> list[Input]:
    """Return the files that a case is read from; files that prompt files name are known when they have been read."""
    flags = [flag for flag in prompt_flags() if flag.is_file]
    return [
        Input("the image", case.image, lambda: image_files(case.image)),
        *(Input(flag.option, path) for flag in flags for path in case.prompts[flag.name]),
        *([Input("--reference", case.reference)] if case.reference else []),
    ]


def segment_case(
    job: Job, predictor: VolumePredictor, model: ModelRecord, progress: Progress | None = None
) -> SegmentationRecord:
    """Segment a case, write its files and return its record.

    Args:
        job: the case.
        predictor: the predictor.
        model: its description.
        progress: called during propagation.

    Raises:
        UserError: a file cannot be written; then none is. If the segmentation was made and DICOM cannot hold it, all
            files are written with NIfTI instead of DICOM, and the message names them.
    """
    record = None
    try:
        with atomic_paths() as temporary_path:
            temporaries = _temporary_files(job, temporary_path)
            zoom = job.settings.zoom
            segmentation = segment_with_zoom(predictor, job.volume, job.prompt_set.prompts, zoom, progress)
            if job.keep:
                filter_labels(segmentation.labels, job.keep)
            window = predictor.model.info.preprocessing.window
            keep = job.settings.keep_component
            record = segmentation_record(segmentation, job.volume, job.prompt_set, model, window, keep, zoom)
            _write_files(temporaries, job, segmentation, record)
    except UserError as error:
        if record is None or job.dicom_source is None:
            raise
        job = _nifti_instead(job)
        with atomic_paths() as temporary_path:
            _write_files(_temporary_files(job, temporary_path), job, segmentation, record)
        more = f" and {len(job.object_files)} files of single objects" if job.object_files else ""
        raise UserError(f"the masks are saved as NIfTI, {job.outputs.labels}{more}, because {error}") from error
    return record


def size_lines(record: SegmentationRecord) -> list[str]:
    """Return one line per object with its size."""
    return [f"{object_title(entry)}: {entry['volume_ml']:.1f} mL" for entry in record["objects"]]


@dataclass(frozen=True)
class _TemporaryFiles:
    """The files of a case under their temporary names."""

    overlay: Path | None
    planes: Path | None
    objects: dict[int, Path]
    statistics: Path | None
    record: Path
    labels: Path


def _temporary_files(job: Job, temporary_path: Callable[..., Path]) -> _TemporaryFiles:
    """Create the temporary files of a case; the label map is renamed last."""
    overlay = temporary_path(job.outputs.overlay, ".png") if job.outputs.overlay else None
    planes = temporary_path(job.outputs.planes, ".png") if job.outputs.planes else None
    objects = {object_id: temporary_path(path, _suffix(path.name)) for object_id, path in job.object_files.items()}
    statistics = temporary_path(table) if (table := job.settings.statistics) else None
    record = temporary_path(record_path(job.outputs.labels))
    labels = temporary_path(job.outputs.labels, _suffix(job.outputs.labels))
    return _TemporaryFiles(overlay, planes, objects, statistics, record, labels)


def _write_files(files: _TemporaryFiles, job: Job, segmentation: Segmentation, record: SegmentationRecord) -> None:
    """Write all files of a case."""
    if files.overlay or files.planes:
        _draw_pictures(files, job, segmentation.labels, record["intensities"]["window"])
    for object_id, mask in segmentation.object_masks() if files.objects else ():
        kept = job.keep(object_id, mask) if job.keep else mask
        _write_labels(files.objects[object_id], kept, job, {1: job.labels[object_id]})
    if files.statistics:
        files.statistics.write_text(_statistics_text(job, segmentation.labels), encoding="utf-8")
    files.record.write_text(record_text(record), encoding="utf-8")
    _write_labels(files.labels, segmentation.labels, job, job.labels)


def _draw_pictures(files: _TemporaryFiles, job: Job, labels: np.ndarray, model_window: str) -> None:
    """Draw the pictures of a case; only this needs matplotlib."""
    from sam2_3dmed_jax.pictures.display_window import display_window
    from sam2_3dmed_jax.pictures.overlay import overlay
    from sam2_3dmed_jax.pictures.planes import three_planes

    prompts = job.prompt_set.prompts
    window = display_window(job.volume, prompts, model_window, job.settings.window)
    for draw, path in ((overlay, files.overlay), (three_planes, files.planes)):
        if path:
            draw(path, job.volume, labels, job.reference, prompts, window, objects=job.labels)


def _nifti_instead(job: Job) -> Job:
    """Return the job with NIfTI files in place of the DICOM files, under names that are not in use."""

    def free(path: Path) -> Path:
        numbers = ("", *(f"_{number}" for number in range(2, 1000)))
        stem = path.name[: -len(_suffix(path.name))]
        names = (path.with_name(f"{stem}{number}.nii.gz") for number in numbers)
        return next(name for name in names if not name.exists())

    labels = str(free(Path(job.outputs.labels)))
    objects = {object_id: free(path) for object_id, path in job.object_files.items()}
    return replace(job, outputs=replace(job.outputs, labels=labels), object_files=objects, dicom_source=None)


def _statistics_text(job: Job, labels: np.ndarray) -> str:
    """Return the table of statistics with the rows of a case."""
    table = read_table(job.settings.statistics) if job.settings.statistics else []
    return table_text(table, statistics_rows(job.case, labels, job.volume, job.labels))


def _add_missing_statistics(case: PredictionCase, files: OutputFiles, settings: CaseSettings) -> None:
    """Add the statistics of a case that an earlier command finished without them."""
    path = settings.statistics
    if path and not any(row["case"] == case.name for row in read_table(path)):
        job = read_job(case, files, settings)
        write_text(path, _statistics_text(job, read_labels(files.labels, job.volume)))


def segment_cases(
    cases: Sequence[PredictionCase],
    outputs: Callable[[str], OutputFiles],
    predictor: VolumePredictor,
    model: ModelRecord,
    settings: CaseSettings,
    progress: Progress | None = None,
    debug: bool = False,
) -> tuple[list[str], dict[str, str]]:
    """Segment many cases with one predictor, so that volumes of the same size share a compilation.

    Args:
        cases: the cases, segmented in this order.
        outputs: returns the files of a case from its name. A case whose label map exists is skipped.
        predictor: the predictor of all cases.
        model: its description.
        settings: of all cases.
        progress: called before each case and at the end.
        debug: print the traceback of each failure.

    Returns:
        One line per finished case, and the reason of each failure by name. A failure does not stop the other cases.
    """
    lines: list[str] = []
    failures: dict[str, str] = {}
    for done, case in enumerate(cases):
        files = outputs(case.name)
        if progress:
            progress("cases", done, len(cases))
        try:
            if os.path.exists(files.labels):
                _add_missing_statistics(case, files, settings)
                lines.append(f"{case.name}: skipped, {files.labels} exists")
                continue
            with path_errors_as_mistakes():
                record = segment_case(read_job(case, files, settings), predictor, model, progress)
            warn_about(record, f"{case.name}: ")
            lines.append(f"{case.name}: {', '.join(size_lines(record))}")
        except Exception as error:  # a bug on one case must not cost the others
            if debug:
                traceback.print_exc()
            reason = str(error) if isinstance(error, UserError) else f"a bug: {type(error).__name__}: {error}"
            failures[case.name] = " ".join(reason.split())
    if progress:
        progress("cases", len(cases), len(cases))
    return lines, failures


def object_files(out: str | os.PathLike[str], object_ids: Sequence[int], names: Mapping[int, str]) -> dict[int, Path]:
    """Return the file of each object, next to the label map: `SEG_object1.nii.gz`, or by name `SEG_spleen.nii.gz`.

    Raises:
        UserError: two objects would be written to one file.
    """
    target = Path(out)
    suffix = _suffix(target.name)
    stem = target.name.removesuffix(suffix)
    files: dict[int, Path] = {}
    for object_id in object_ids:
        name = re.sub(r"[^\w.+-]+", "_", names.get(object_id) or f"object{object_id}")
        path = target.with_name(f"{stem}_{name}{suffix}")
        if path in files.values():
            raise UserError(f"--separate: two objects would be written to {path}; give them different names")
        files[object_id] = path
    return files


def _suffix(name: str) -> str:
    suffix = suffix_of(name, segmentation_suffixes())
    return name[-len(suffix) :] if suffix else Path(name).suffix


def _write_labels(path: Path, labels: np.ndarray, job: Job, names: Mapping[int, ObjectLabel]) -> None:
    """Write a label map in the format of the file's name."""
    write_segmentation(path, labels, job.volume, names, job.dicom_source)

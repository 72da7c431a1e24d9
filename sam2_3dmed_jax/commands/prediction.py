"""What `predict` does: one case or many, from files to files. All that can be refused is refused before the model runs.

A case writes all its files or none, the label map last, so that a label map means a finished case.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference.feature_store import Progress
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.inference.segment import segment_volume
from sam2_3dmed_jax.pictures.overlay import overlay
from sam2_3dmed_jax.pictures.planes import three_planes
from sam2_3dmed_jax.prompts.case_table import Case
from sam2_3dmed_jax.prompts.flags import gather_prompts
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt, merge_prompts
from sam2_3dmed_jax.runtime.outputs import object_files, written_together
from sam2_3dmed_jax.volume.dicom_frame import Frame
from sam2_3dmed_jax.volume.dicom_seg import source_frames, write_dicom_seg
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.io import read_labels, read_volume, write_labels


@dataclass(frozen=True)
class Outputs:
    """The files that are wanted of a case."""

    labels: str
    separate: bool = False  # one more file an object, whole where objects overlap
    overlay: str | None = None  # PNG
    planes: str | None = None  # PNG


@dataclass(frozen=True, eq=False)
class Job:
    """A case that has been read and found to fit."""

    volume: Volume
    prompts: list[VoxelPrompt]
    names: dict[int, str]
    reference: np.ndarray | None
    outputs: Outputs
    separate: dict[int, Path]  # files of single objects
    frames: Sequence[Frame] | None  # slices of the series that a DICOM-SEG refers to


def prepare(case: Case, outputs: Outputs, resample: bool = False) -> Job:
    """Read a case; `resample` puts irregular DICOM slices on a regular grid.

    Raises:
        UserError: a file or prompt that does not fit, or an output that would replace the image.
    """
    volume = read_volume(case.image, index=case.index, resample=resample)
    for path in (outputs.labels, outputs.overlay, outputs.planes):
        if path and os.path.exists(path) and os.path.samefile(path, case.image):
            raise UserError(f"--out: {path} is the image itself; give another file")
    frames = source_frames(outputs.labels, volume) if outputs.labels.endswith(".dcm") else None
    found = gather_prompts(case.prompts, volume)
    prompts = merge_prompts(found.prompts)
    reference = read_labels(case.reference, volume) if case.reference else None
    ids = sorted({prompt.object_id for prompt in prompts})
    separate = object_files(outputs.labels, ids, found.names) if outputs.separate else {}
    return Job(volume, prompts, found.names, reference, outputs, separate, frames)


def run(job: Job, predictor: VolumePredictor, progress: Progress | None = None) -> list[str]:
    """Segment a case and write its files; returns a line an object with its size.

    Raises:
        UserError: a file cannot be written; then none is.
    """
    volume, outputs = job.volume, job.outputs
    with written_together() as place:
        pictures = [
            (draw, place(path)) for draw, path in ((overlay, outputs.overlay), (three_planes, outputs.planes)) if path
        ]
        files = {object_id: place(path) for object_id, path in job.separate.items()}
        target = place(outputs.labels)
        found = segment_volume(predictor, volume, job.prompts, progress)
        names = {object_id: job.names.get(object_id, f"object {object_id}") for object_id in found.result.object_ids}
        window = predictor.model.info.preprocessing.window
        for draw, path in pictures:
            draw(path, volume, found.labels, job.reference, job.prompts, window)
        for object_id, mask in found.object_masks() if files else ():
            _write(files[object_id], mask, job, {1: names[object_id]})
        _write(target, found.labels, job, names)
    lines = []
    for object_id in found.result.object_ids:
        millilitres = float((found.labels == object_id).sum()) * volume.voxel_volume_ml
        name = f" ({job.names[object_id]})" if object_id in job.names else ""
        lines.append(f"object {object_id}{name}: {millilitres:.1f} mL")
    return lines


def run_cases(
    cases: Sequence[Case],
    outputs: Callable[[str], Outputs],
    predictor: VolumePredictor,
    progress: Progress | None = None,
    resample: bool = False,
    debug: bool = False,
) -> tuple[list[str], dict[str, str]]:
    """Segment many cases with one predictor, so that volumes of one size share a compilation.

    Args:
        cases: in the order in which they are done.
        outputs: from the name of a case to its files. A case whose label map exists is done already.
        predictor: of all.
        progress: told of each case.
        resample: as `prepare`.
        debug: print the traceback of each failure.

    Returns:
        A line a case, and by name the reason of each failure, which stops no other case.
    """
    lines: list[str] = []
    failures: dict[str, str] = {}
    for done, case in enumerate(cases):
        wanted = outputs(case.name)
        if progress:
            progress("cases", done, len(cases))
        try:
            if os.path.exists(wanted.labels) and not _same(wanted.labels, case.image):
                lines.append(f"{case.name}: skipped, {wanted.labels} exists")
                continue
            sizes = run(prepare(case, wanted, resample), predictor, progress)
            lines.append(f"{case.name}: {', '.join(sizes)}")
        except Exception as error:  # a bug on one case must not cost the others
            if debug:
                traceback.print_exc()
            told = str(error) if isinstance(error, UserError) else f"a bug: {type(error).__name__}: {error}"
            failures[case.name] = " ".join(told.split())
    if progress:
        progress("cases", len(cases), len(cases))
    return lines, failures


def _write(path: Path, labels: np.ndarray, job: Job, names: dict[int, str]) -> None:
    if path.suffix == ".dcm":
        write_dicom_seg(path, labels, job.volume, names, job.frames)
    else:
        write_labels(path, labels, job.volume)


def _same(one: str, other: str) -> bool:
    return os.path.exists(other) and os.path.samefile(one, other)

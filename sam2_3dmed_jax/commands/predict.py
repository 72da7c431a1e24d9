"""`sam2-3dmed predict`: one volume, a table of volumes, or the test set of a challenge, segmented from prompts.

All mistakes that can be found before the model runs are reported before it runs. A case writes all of its files or
none, and the label map last, so that an existing label map means a finished case.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sam2_3dmed_jax.commands.command_line import READER, Parser, start
from sam2_3dmed_jax.errors import UserError, listed
from sam2_3dmed_jax.prompts.flags import PromptFlags, add_prompt_arguments
from sam2_3dmed_jax.volume.formats import segmentation_suffixes, suffix_of
from sam2_3dmed_jax.volume.modality import WORDS

if TYPE_CHECKING:
    import numpy as np

    from sam2_3dmed_jax.inference.predictor import VolumePredictor
    from sam2_3dmed_jax.inference.segment import Segmentation
    from sam2_3dmed_jax.prompts.case_table import PredictionCase
    from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
    from sam2_3dmed_jax.runtime.progress import Progress
    from sam2_3dmed_jax.volume.dicom_seg_source import SegmentationSource
    from sam2_3dmed_jax.volume.geometry import Volume
    from sam2_3dmed_jax.volume.modality import ModalitySources

HELP = "segment a volume, or many, from prompts; x,y,z are 0-based voxel indices of IMAGE as stored"

PICTURES = ("overlay", "planes")


@dataclass(frozen=True)
class Options:
    """The arguments of `predict`. None: not given."""

    checkpoint: str
    image: str | None
    out: str
    volume: int | None
    resample: bool
    skip_unreadable: bool
    modality: str | None
    prompt_flags: PromptFlags = field(metadata={READER: PromptFlags.from_options})
    separate: bool
    overlay: str | None
    planes: str | None
    reference: str | None
    cases: str | None
    msd_test: str | None
    prompts_from: str | None
    protocol: str
    order: Literal["sequential", "independent"]
    debug: bool


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument("checkpoint", metavar="CKPT", help="folder of a native checkpoint")
    parser.add_argument(
        "image", metavar="IMAGE", nargs="?", help="NIfTI, NRRD or MHA file, or folder of a DICOM series"
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="SEG",
        help="*.nii.gz on the grid of IMAGE, whose values are object ids; *.dcm: DICOM-SEG",
    )
    parser.add_argument("--volume", type=int, metavar="N", help="0-based index of the volume of a 4D NIfTI file")
    parser.add_argument("--resample", action="store_true", help="put DICOM slices with gaps or tilt on a regular grid")
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out files of a DICOM folder that may be damaged slices, and list them, instead of an error",
    )
    parser.add_argument(
        "--modality",
        choices=tuple(WORDS),
        help="modality of IMAGE (default: of its file or of the task, otherwise as CKPT was trained, or ct)",
    )
    add_prompt_arguments(parser)
    parser.add_argument(
        "--separate",
        action="store_true",
        help="also write one file per object, SEG_object1.nii.gz; these may overlap",
    )
    parser.add_argument("--overlay", metavar="PNG", help="contact sheet of slices with contours; with --cases a folder")
    parser.add_argument("--planes", metavar="PNG", help="three planes through each object; with --cases a folder")
    parser.add_argument("--reference", metavar="LABELS.nii.gz", help="label map to draw in the pictures")
    _add_batches(parser)
    parser.add_argument(
        "--order",
        choices=("sequential", "independent"),
        default="sequential",
        help="order of the two propagation directions",
    )


def _add_batches(parser: Parser) -> None:
    """Define what replaces IMAGE when there are many volumes."""
    parser.add_argument("--cases", metavar="CSV|FOLDER", help="many volumes instead of IMAGE; --out is a folder then")
    parser.add_argument(
        "--msd-test",
        metavar="TASK",
        help="folder of a Decathlon task instead of IMAGE; all images in its imagesTs are segmented into OUT/TASK/, "
        "in the format of the challenge",
    )
    parser.add_argument(
        "--prompts-from",
        metavar="DIR",
        help="with --msd-test and instead of --cases, predictions of an automatic method that prompts are drawn from",
    )
    parser.add_argument(
        "--protocol",
        default="one-click",
        help="how prompts are drawn from --prompts-from: one-click, box-mid or one-click-per-component",
    )


def run(options: Options) -> None:
    """Segment one volume, a table or folder of volumes, or a test set."""
    if options.prompts_from and not options.msd_test:
        raise UserError("--prompts-from is for --msd-test TASK; give --msd-test too")
    if options.msd_test:
        _segment_test_set(options, options.msd_test)
    elif options.cases:
        _segment_table(options, options.cases)
    else:
        _segment_one(options)


def _segment_one(options: Options) -> None:
    """Segment IMAGE."""
    if not options.image:
        raise UserError("IMAGE is missing; give IMAGE, or --cases CSV|FOLDER for many volumes")
    if not suffix_of(options.out, segmentation_suffixes()):
        raise UserError(
            f"--out: {options.out} is not the name of a segmentation; let it end in .nii.gz, or in .dcm for DICOM-SEG"
        )
    if options.reference and not (options.overlay or options.planes):
        raise UserError("--reference is drawn in pictures; give --overlay PNG or --planes PNG too")
    if options.overlay and options.overlay == options.planes:
        raise UserError("--planes: it is the same file as --overlay; give another file")
    start()
    from sam2_3dmed_jax.inference.predictor import VolumePredictor
    from sam2_3dmed_jax.model.checkpoint import load_model
    from sam2_3dmed_jax.prompts.case_table import PredictionCase
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

    case = PredictionCase(options.out, options.image, options.prompt_flags, options.reference, options.volume)
    outputs = OutputFiles(options.out, options.separate, options.overlay, options.planes)
    sources = _modality_sources(options)
    job = read_job(case, outputs, options.resample, options.skip_unreadable, sources)
    predictor = VolumePredictor(load_model(options.checkpoint), options.order)
    with ConsoleProgress() as progress:
        lines = segment_case(job, predictor, progress)
    print("\n".join(lines))
    if note := _assumption_note([case], sources):
        print(note)
    print(f"segmentation in {options.out} (for research use only)")
    for path in job.object_files.values():
        print(f"one object in {path}")
    for name in PICTURES:
        if getattr(options, name):
            print(f"{name} in {getattr(options, name)}")


def _segment_test_set(options: Options, task: str) -> None:
    """Segment the test images of a Decathlon task, in the format of the challenge."""
    if flag := _first_given(options, "separate", *PICTURES, "resample", "skip_unreadable"):
        raise UserError(f"{flag} is for other volumes; leave it out with --msd-test")
    if bool(options.cases) == bool(options.prompts_from):
        raise UserError("--msd-test: give either --cases CSV|FOLDER, with prompts, or --prompts-from DIR")
    _check_folder(options, "--msd-test")
    start()
    from sam2_3dmed_jax.evaluation.submission import export_submission
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

    prompting = options.cases, options.prompts_from, options.protocol, options.order
    given = _modality_sources(options).given
    with ConsoleProgress() as progress:
        lines = export_submission(options.checkpoint, task, options.out, *prompting, progress, given)
    print("\n".join(lines))


def _segment_table(options: Options, table: str) -> None:
    """Segment the cases of a table or folder, and list those that failed at the end."""
    if flag := _first_given(options):
        raise UserError(f"{flag} is for a single volume; with --cases, give it in the table")
    _check_folder(options, "--cases")
    start()
    from sam2_3dmed_jax.inference.predictor import VolumePredictor
    from sam2_3dmed_jax.model.checkpoint import load_model
    from sam2_3dmed_jax.prompts.case_table import images_without_prompts, read_cases
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

    cases = read_cases(table)

    def outputs(name: str) -> OutputFiles:
        overlay = f"{options.overlay}/{name}.png" if options.overlay else None
        planes = f"{options.planes}/{name}_planes.png" if options.planes else None
        return OutputFiles(f"{options.out}/{name}.nii.gz", options.separate, overlay, planes)

    sources = _modality_sources(options)
    predictor = VolumePredictor(load_model(options.checkpoint), options.order)
    with ConsoleProgress() as progress:
        reading = options.resample, options.skip_unreadable
        lines, failures = segment_cases(cases, outputs, predictor, progress, *reading, options.debug, sources)
    for line in lines:
        print(line)
    if note := _assumption_note(cases, sources):
        print(note)
    if Path(table).is_dir() and (left_out := images_without_prompts(table)):
        print(f"left out, because they have no prompt files: {listed(left_out)}")
    print(f"{len(cases) - len(failures)} of {len(cases)} segmentations in {options.out} (for research use only)")
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}")
    if failures:
        raise UserError(
            f"--cases: {len(failures)} of {len(cases)} failed, for the reasons above; fix them and run the same "
            "command again, which skips finished cases"
        )


def _modality_sources(options: Options) -> ModalitySources:
    """Return what is known about the modality of the images; a missing checkpoint is reported when it is loaded."""
    from sam2_3dmed_jax.model.checkpoint import read_info
    from sam2_3dmed_jax.volume.modality import ModalitySources, parse_modality

    sources = ModalitySources(parse_modality(options.modality, "--modality"), checkpoint=options.checkpoint)
    if not Path(options.checkpoint, "config.json").exists():
        return sources
    return replace(sources, preprocessing=read_info(options.checkpoint).preprocessing)


def _assumption_note(cases: Sequence[PredictionCase], sources: ModalitySources) -> str:
    """Return a note if the modality of some images is not known, or ""."""
    from sam2_3dmed_jax.data.split_files import first_ids
    from sam2_3dmed_jax.volume.dicom import is_dicom
    from sam2_3dmed_jax.volume.modality import assumption_note

    images = [case.image for case in cases if sources.is_assumed(None) and not is_dicom(case.image)]
    return assumption_note(first_ids(images)) if images else ""


def _first_given(options: Options, *others: str) -> str | None:
    """Return the first given argument that belongs to a single volume or is one of `others`, or None."""
    arguments = {"image": options.image, "volume": options.volume, **options.prompt_flags.texts}
    arguments |= {name: getattr(options, name) for name in ("reference", *others)}
    for name, value in arguments.items():
        if value is not None and value is not False:
            return "IMAGE" if name == "image" else f"--{name.replace('_', '-')}"
    return None


def _check_folder(options: Options, flag: str) -> None:
    """Check that `--out` can be a folder.

    Raises:
        UserError: it is a file, or has the name of one.
    """
    if Path(options.out).is_file() or suffix_of(options.out, segmentation_suffixes()):
        raise UserError(f"--out: {options.out} is not a folder; with {flag}, give a folder")


@dataclass(frozen=True)
class OutputFiles:
    """The files to write for a case."""

    labels: str
    separate: bool = False  # also one file per object, with its whole mask where objects overlap
    overlay: str | None = None  # PNG
    planes: str | None = None  # PNG


@dataclass(frozen=True, eq=False)
class Job:
    """A case that has been read and checked."""

    volume: Volume
    prompts: list[VoxelPrompt]
    names: dict[int, str]  # of objects, by id
    reference: np.ndarray | None
    outputs: OutputFiles
    object_files: dict[int, Path]  # files of single objects, by id
    dicom_source: SegmentationSource | None  # the series that a DICOM-SEG refers to; None for NIfTI


def read_job(
    case: PredictionCase,
    outputs: OutputFiles,
    resample: bool = False,
    skip_unreadable: bool = False,
    modality: ModalitySources | None = None,
) -> Job:
    """Read a case and check that its files and prompts fit.

    Args:
        case: the image, its prompts and the reference.
        outputs: the files to write.
        resample: put irregular DICOM slices on a regular grid.
        skip_unreadable: leave out damaged files of a DICOM folder.
        modality: what is known about the modality of the image; None: nothing but its file.

    Raises:
        UserError: a file or prompt does not fit, or an output would replace the image.
    """
    from sam2_3dmed_jax.prompts.flags import gather_prompts
    from sam2_3dmed_jax.prompts.voxel_prompts import merge_prompts
    from sam2_3dmed_jax.volume.dicom_seg import prepare_dicom_seg
    from sam2_3dmed_jax.volume.io import read_labels, read_volume
    from sam2_3dmed_jax.volume.modality import ModalitySources

    volume = read_volume(
        case.image,
        index=case.index,
        resample=resample,
        skip_unreadable=skip_unreadable,
        modality=modality or ModalitySources(),
    )
    for path in (outputs.labels, outputs.overlay, outputs.planes):
        if path and os.path.exists(path) and os.path.samefile(path, case.image):
            raise UserError(f"--out: {path} is the image itself; give another file")
    prompt_set = gather_prompts(case.prompts, volume)
    prompts = merge_prompts(prompt_set.prompts)
    reference = read_labels(case.reference, volume) if case.reference else None
    ids = sorted({prompt.object_id for prompt in prompts})
    separate = object_files(outputs.labels, ids, prompt_set.names) if outputs.separate else {}
    source = None
    if outputs.labels.lower().endswith(".dcm"):
        source = prepare_dicom_seg(outputs.labels, volume, _object_names(ids, prompt_set.names))
    return Job(volume, prompts, prompt_set.names, reference, outputs, separate, source)


def segment_case(job: Job, predictor: VolumePredictor, progress: Progress | None = None) -> list[str]:
    """Segment a case, write its files and return one line per object with its size.

    Raises:
        UserError: a file cannot be written; then none is. If the segmentation was made and DICOM-SEG cannot hold it,
            all files are written with NIfTI instead of DICOM-SEG, and the message names them.
    """
    from sam2_3dmed_jax.inference.segment import segment_volume
    from sam2_3dmed_jax.runtime.atomic_files import atomic_paths

    segmentation = None
    try:
        with atomic_paths() as temporary_path:
            temporaries = _temporary_files(job, temporary_path)
            segmentation = segment_volume(predictor, job.volume, job.prompts, progress)
            _write_files(temporaries, job, segmentation, predictor)
    except UserError as error:
        if segmentation is None or job.dicom_source is None:
            raise
        job = _nifti_instead(job)
        with atomic_paths() as temporary_path:
            _write_files(_temporary_files(job, temporary_path), job, segmentation, predictor)
        more = f" and {len(job.object_files)} files of single objects" if job.object_files else ""
        raise UserError(f"the masks are saved as NIfTI, {job.outputs.labels}{more}, because {error}") from error
    lines = []
    for object_id in segmentation.result.object_ids:
        millilitres = float((segmentation.labels == object_id).sum()) * job.volume.voxel_volume_ml
        name = f" ({job.names[object_id]})" if object_id in job.names else ""
        lines.append(f"object {object_id}{name}: {millilitres:.1f} mL")
    return lines


@dataclass(frozen=True)
class _TemporaryFiles:
    """The files of a case under their temporary names."""

    overlay: Path | None
    planes: Path | None
    objects: dict[int, Path]
    labels: Path


def _temporary_files(job: Job, temporary_path: Callable[..., Path]) -> _TemporaryFiles:
    """Create the temporary files of a case; the label map is renamed last."""
    overlay = temporary_path(job.outputs.overlay, ".png") if job.outputs.overlay else None
    planes = temporary_path(job.outputs.planes, ".png") if job.outputs.planes else None
    objects = {object_id: temporary_path(path, _suffix(path.name)) for object_id, path in job.object_files.items()}
    return _TemporaryFiles(overlay, planes, objects, temporary_path(job.outputs.labels, _suffix(job.outputs.labels)))


def _write_files(files: _TemporaryFiles, job: Job, segmentation: Segmentation, predictor: VolumePredictor) -> None:
    """Write all files of a case."""
    from sam2_3dmed_jax.pictures.overlay import overlay
    from sam2_3dmed_jax.pictures.planes import three_planes

    names = _object_names(segmentation.result.object_ids, job.names)
    window = predictor.model.info.preprocessing.window
    for draw, path in ((overlay, files.overlay), (three_planes, files.planes)):
        if path:
            draw(path, job.volume, segmentation.labels, job.reference, job.prompts, window)
    for object_id, mask in segmentation.object_masks() if files.objects else ():
        _write_labels(files.objects[object_id], mask, job, {1: names[object_id]})
    _write_labels(files.labels, segmentation.labels, job, names)


def _nifti_instead(job: Job) -> Job:
    """Return the job with NIfTI files in place of the DICOM-SEG files, under names that are not in use."""

    def free(path: Path) -> Path:
        numbers = ("", *(f"_{number}" for number in range(2, 1000)))
        names = (path.with_name(f"{path.stem}{number}.nii.gz") for number in numbers)
        return next(name for name in names if not name.exists())

    labels = str(free(Path(job.outputs.labels)))
    objects = {object_id: free(path) for object_id, path in job.object_files.items()}
    return replace(job, outputs=replace(job.outputs, labels=labels), object_files=objects, dicom_source=None)


def _object_names(object_ids: Sequence[int], names: Mapping[int, str]) -> dict[int, str]:
    return {object_id: names.get(object_id, f"object {object_id}") for object_id in object_ids}


def segment_cases(
    cases: Sequence[PredictionCase],
    outputs: Callable[[str], OutputFiles],
    predictor: VolumePredictor,
    progress: Progress | None = None,
    resample: bool = False,
    skip_unreadable: bool = False,
    debug: bool = False,
    modality: ModalitySources | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Segment many cases with one predictor, so that volumes of the same size share a compilation.

    Args:
        cases: the cases, segmented in this order.
        outputs: returns the files of a case from its name. A case whose label map exists is skipped.
        predictor: the predictor of all cases.
        progress: called before each case and at the end.
        resample: as in `read_job`.
        skip_unreadable: as in `read_job`.
        debug: print the traceback of each failure.
        modality: as in `read_job`.

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
            if os.path.exists(files.labels) and not _same_file(files.labels, case.image):
                lines.append(f"{case.name}: skipped, {files.labels} exists")
                continue
            sizes = segment_case(read_job(case, files, resample, skip_unreadable, modality), predictor, progress)
            lines.append(f"{case.name}: {', '.join(sizes)}")
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


def _write_labels(path: Path, labels: np.ndarray, job: Job, names: dict[int, str]) -> None:
    """Write a label map in the format of the file's name."""
    from sam2_3dmed_jax.volume.io import write_segmentation

    write_segmentation(path, labels, job.volume, names, job.dicom_source)


def _same_file(path: str, other: str) -> bool:
    return os.path.exists(other) and os.path.samefile(path, other)

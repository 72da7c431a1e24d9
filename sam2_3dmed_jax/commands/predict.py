"""`sam2-3dmed predict`: one volume, a table of volumes, or the test set of a challenge, segmented from prompts.

All mistakes that can be found before the model runs are reported before it runs. The work on a case is in
`inference/predict_case.py`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sam2_3dmed_jax.commands.automatic_start import add_start_arguments, misplaced_start_flag, start_settings
from sam2_3dmed_jax.commands.command_line import (
    READER,
    CheckpointName,
    Parser,
    add_compute_dtype,
    add_memory_selection,
    add_zoom,
    start,
)
from sam2_3dmed_jax.config import MemorySelection
from sam2_3dmed_jax.errors import FileWarning, UserError, listed
from sam2_3dmed_jax.prompts.flags import PromptFlags, add_prompt_arguments, parse_object_labels
from sam2_3dmed_jax.runtime.compute_dtype import ComputeDtypeChoice
from sam2_3dmed_jax.volume.formats import all_suffixes, case_id, segmentation_suffixes, suffix_of
from sam2_3dmed_jax.volume.modality import WORDS

if TYPE_CHECKING:
    from sam2_3dmed_jax.inference.predict_case import CaseSettings, OutputFiles
    from sam2_3dmed_jax.inference.predictor import VolumePredictor
    from sam2_3dmed_jax.inference.segmentation_record import ModelRecord
    from sam2_3dmed_jax.prompts.case_table import PredictionCase
    from sam2_3dmed_jax.volume.modality import ModalitySources

HELP = "segment a volume, or many, from prompts; x,y,z are 0-based voxel indices of IMAGE as stored"

PICTURES = ("overlay", "planes")


@dataclass(frozen=True)
class Options:
    """The arguments of `predict`. None: not given."""

    checkpoint: str  # "": not given
    image: str | None
    model: str | None
    out: str
    volume: int | None
    resample: bool
    skip_unreadable: bool
    modality: str | None
    prompt_flags: PromptFlags = field(metadata={READER: PromptFlags.from_options})
    classes: str | None
    separate: bool
    statistics: str | None
    overlay: str | None
    planes: str | None
    reference: str | None
    cases: str | None
    msd_test: str | None
    protocol: str | None
    targets: str | None
    names: str | None
    mask_slices: int | None
    follow_up: bool
    order: Literal["sequential", "independent"]
    keep_component: Literal["clicked", "largest"] | None
    zoom: str | None
    compute_dtype: ComputeDtypeChoice
    memory_selection: MemorySelection | None
    window: str | None
    debug: bool

    @property
    def prompts_from(self) -> str | None:
        """The label map, or with --msd-test the folder, that prompts are drawn from."""
        return next(iter(self.prompt_flags["prompts_from"]), None)


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument(
        "checkpoint",
        type=CheckpointName,
        metavar="CKPT",
        nargs="?",
        default="",
        help="folder of a native checkpoint, or a name of `download`; left out with --model",
    )
    parser.add_argument(
        "image", metavar="IMAGE", nargs="?", help="NIfTI, NRRD or MHA file, or folder of a DICOM series"
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="SEG",
        help="*.nii.gz on the grid of IMAGE, whose values are object ids; of a DICOM series also *.dcm (DICOM-SEG) or "
        "*.rtstruct.dcm (RTSTRUCT); SEG.json next to it describes the masks",
    )
    parser.add_argument(
        "--model",
        type=CheckpointName,
        metavar="NAME",
        help="the checkpoint, in place of CKPT, such as sam2.1_hiera_tiny",
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
    add_start_arguments(parser)
    parser.add_argument(
        "--classes",
        metavar="1=spleen,...",
        help="names of objects, by object id; common organs and lesions have a SNOMED CT code and a colour by their "
        "name, and others may be given them, such as 2=node:59441001:#44ac64",
    )
    parser.add_argument(
        "--separate",
        action="store_true",
        help="also write one file per object, SEG_object1.nii.gz; these may overlap",
    )
    parser.add_argument(
        "--statistics",
        metavar="CSV",
        help="table with volume, intensities and position of each object; the rows of other cases in it are kept",
    )
    parser.add_argument(
        "--overlay", metavar="PNG", help="enlarged and whole slices with contours; with --cases a folder"
    )
    parser.add_argument("--planes", metavar="PNG", help="three planes through each object; with --cases a folder")
    parser.add_argument(
        "--window",
        metavar="NAME|LEVEL,WIDTH",
        help="display window of the pictures, such as lung, bone, 40,400 or 1%%,99%% (default: of CKPT; in CT lung or "
        "bone, where that hides the prompts)",
    )
    parser.add_argument("--reference", metavar="LABELS.nii.gz", help="label map to draw in the pictures")
    _add_batches(parser)
    parser.add_argument(
        "--order",
        choices=("sequential", "independent"),
        default="sequential",
        help="order of the two propagation directions",
    )
    parser.add_argument(
        "--keep-component",
        choices=("clicked", "largest"),
        help="keep only the largest connected component of each mask, or the one at (or nearest to) each click inside",
    )
    add_zoom(parser)
    add_compute_dtype(parser)
    add_memory_selection(parser)


def _add_batches(parser: Parser) -> None:
    """Define what replaces IMAGE when there are many volumes."""
    parser.add_argument("--cases", metavar="CSV|FOLDER", help="many volumes instead of IMAGE; --out is a folder then")
    parser.add_argument(
        "--msd-test",
        metavar="TASK",
        help="folder of a Decathlon task instead of IMAGE; all images in its imagesTs are segmented into OUT/TASK/, "
        "in the format of the challenge",
    )


def run(options: Options) -> None:
    """Segment one volume, a table or folder of volumes, or a test set."""
    options = _with_checkpoint(options)
    if not (options.prompts_from or options.cases) and (flag := misplaced_start_flag(options)):
        raise UserError(f"{flag} is for prompts of a label map; give --prompts-from LABELS|FOLDER too, or leave it out")
    _check_window(options)
    if options.msd_test:
        _segment_test_set(options, options.msd_test)
    elif options.cases:
        _segment_table(options, options.cases)
    else:
        _segment_one(options)


def _with_checkpoint(options: Options) -> Options:
    """Return the options with CKPT: with --model, the only word is IMAGE.

    Raises:
        UserError: no checkpoint is given, or two.
    """
    if options.model:
        if options.image:
            raise UserError(f"--model: CKPT is given too ({options.checkpoint}); leave out one of them")
        return replace(options, checkpoint=options.model, image=options.checkpoint or None)
    example = "--model sam2.1_hiera_tiny"
    if not options.checkpoint:
        raise UserError(f"CKPT is missing; give the folder of a checkpoint, or a name such as {example}")
    if not options.image and suffix_of(options.checkpoint, all_suffixes()):
        raise UserError(f"{options.checkpoint} is an image, and CKPT is missing; give one, or a name such as {example}")
    return options


def _ready(options: Options) -> Options:
    """Prepare for computation, and return the options with the checkpoint's folder in place of its name."""
    start()
    from sam2_3dmed_jax.hub.resolve import checkpoint_folder

    return replace(options, checkpoint=str(checkpoint_folder(options.checkpoint)))


def _segment_one(options: Options) -> None:
    """Segment IMAGE."""
    if not (image := options.image):
        raise UserError("IMAGE is missing; give IMAGE, or --cases CSV|FOLDER for many volumes")
    if not suffix_of(options.out, segmentation_suffixes()):
        raise UserError(
            f"--out: {options.out} is not the name of a segmentation; let it end in .nii.gz, in .dcm for DICOM-SEG, or "
            "in .rtstruct.dcm"
        )
    if options.reference and not (options.overlay or options.planes):
        raise UserError("--reference is drawn in pictures; give --overlay PNG or --planes PNG too")
    from sam2_3dmed_jax.inference.predict_case import OutputFiles, read_job, segment_case, size_lines
    from sam2_3dmed_jax.inference.segmentation_record import record_path, warn_about
    from sam2_3dmed_jax.prompts.case_table import PredictionCase
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

    name = os.path.basename(os.path.abspath(image))
    name = case_id(name, all_suffixes()) or name
    case = PredictionCase(name, image, options.prompt_flags, options.reference, options.volume)
    outputs = OutputFiles(options.out, options.separate, options.overlay, options.planes)
    _check_outputs(options, [case], [outputs])
    options = _ready(options)
    sources = _modality_sources(options)
    job = read_job(case, outputs, _case_settings(options, sources))
    predictor, model = _load(options)
    with ConsoleProgress() as progress:
        record = segment_case(job, predictor, model, progress)
    print("\n".join(size_lines(record)))
    if note := _assumption_note([case], sources):
        print(note)
    warn_about(record)
    print(f"segmentation in {options.out} (for research use only)")
    print(f"record in {record_path(options.out)}")
    for path in job.object_files.values():
        print(f"one object in {path}")
    for name in ("statistics", *PICTURES):
        if getattr(options, name):
            print(f"{name} in {getattr(options, name)}")


def _segment_test_set(options: Options, task: str) -> None:
    """Segment the test images of a Decathlon task, in the format of the challenge."""
    if flag := _first_given(
        options,
        "classes",
        "separate",
        "statistics",
        *PICTURES,
        "window",
        "keep_component",
        "resample",
        "skip_unreadable",
        "zoom",
        "targets",
        "names",
        "mask_slices",
        "follow_up",
    ):
        raise UserError(f"{flag} is for other volumes; leave it out with --msd-test")
    if bool(options.cases) == bool(options.prompts_from):
        raise UserError("--msd-test: give either --cases CSV|FOLDER, with prompts, or --prompts-from DIR")
    _check_folder(options, "--msd-test")
    options = _ready(options)
    from sam2_3dmed_jax.evaluation.submission import export_submission
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

    prompting = options.cases, options.prompts_from, options.protocol or "one-click", options.order
    given, dtype = _modality_sources(options).given, options.compute_dtype
    with ConsoleProgress() as progress:
        lines = export_submission(
            options.checkpoint, task, options.out, *prompting, progress, given, dtype, options.memory_selection
        )
    print("\n".join(lines))


def _segment_table(options: Options, table: str) -> None:
    """Segment the cases of a table or folder, and list those that failed at the end."""
    if flag := _first_given(options):
        raise UserError(f"{flag} is for a single volume; with --cases, give it in the table")
    _check_folder(options, "--cases")
    from sam2_3dmed_jax.inference.predict_case import OutputFiles, segment_cases
    from sam2_3dmed_jax.prompts.case_table import images_without_prompts, read_cases
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

    cases = read_cases(table)

    def outputs(name: str) -> OutputFiles:
        overlay = f"{options.overlay}/{name}.png" if options.overlay else None
        planes = f"{options.planes}/{name}_planes.png" if options.planes else None
        return OutputFiles(f"{options.out}/{name}.nii.gz", options.separate, overlay, planes)

    _check_outputs(options, cases, [outputs(case.name) for case in cases])
    options = _ready(options)
    sources = _modality_sources(options)
    settings = _case_settings(options, sources)
    with ConsoleProgress() as progress:
        lines, failures = segment_cases(cases, outputs, *_load(options), settings, progress, options.debug)
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


def _check_outputs(options: Options, cases: Sequence[PredictionCase], outputs: Sequence[OutputFiles]) -> None:
    """Check that no output of the command replaces an input or another output; of each case, `outputs` are its files.

    Raises:
        UserError: one does.
    """
    from sam2_3dmed_jax.inference.predict_case import case_inputs, planned_outputs
    from sam2_3dmed_jax.model.checkpoint import checkpoint_files
    from sam2_3dmed_jax.runtime.output_plan import Input, OutputFile, check_outputs

    table = [OutputFile("--statistics", options.statistics)] if options.statistics else []
    folder = options.checkpoint
    inputs = [Input("CKPT", folder, lambda: checkpoint_files(folder))] if os.path.isdir(folder) else []
    inputs += [Input("--cases", file)] if (file := options.cases) and os.path.isfile(file) else []
    check_outputs(
        [*(output for files in outputs for output in planned_outputs(files, (), None)), *table],
        [*inputs, *(each for case in cases for each in case_inputs(case))],
    )


def _load(options: Options) -> tuple[VolumePredictor, ModelRecord]:
    """Load the model, describe it, and warn if it was never trained."""
    from sam2_3dmed_jax.inference.predictor import VolumePredictor
    from sam2_3dmed_jax.inference.segmentation_record import model_record, untrained_warning
    from sam2_3dmed_jax.model.checkpoint import load_model

    loaded = load_model(options.checkpoint, compute_dtype=options.compute_dtype)
    predictor = VolumePredictor(loaded, options.order, memory_selection=options.memory_selection)
    model = model_record(predictor, options.checkpoint)
    if model["random_weights"]:
        warnings.warn(untrained_warning(options.checkpoint), FileWarning, stacklevel=2)
    return predictor, model


def _case_settings(options: Options, sources: ModalitySources) -> CaseSettings:
    """Return the settings of all cases.

    Raises:
        UserError: --classes are not names of objects, --statistics is another file, --zoom has another form, or a
            setting of --prompts-from does not fit.
    """
    from sam2_3dmed_jax.inference.predict_case import CaseSettings
    from sam2_3dmed_jax.inference.statistics_table import read_table
    from sam2_3dmed_jax.volume.zoom import OFF, parse_zoom

    labels = parse_object_labels(options.classes)
    if options.statistics:
        read_table(options.statistics)
    reading = options.resample, options.skip_unreadable, sources
    settings = CaseSettings(*reading, options.keep_component, options.window, labels, options.statistics)
    return replace(settings, zoom=parse_zoom(options.zoom or OFF), start=start_settings(options))


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
    if options.msd_test:
        arguments.pop("prompts_from", None)
    arguments |= {name: getattr(options, name) for name in ("reference", *others)}
    for name, value in arguments.items():
        if value is not None and value is not False:
            return "IMAGE" if name == "image" else f"--{name.replace('_', '-')}"
    return None


def _check_window(options: Options) -> None:
    """Check `--window`.

    Raises:
        UserError: it is not a window, or no picture is drawn.
    """
    if options.window is None:
        return
    from sam2_3dmed_jax.volume.intensity import check_window

    if not (options.overlay or options.planes):
        raise UserError("--window is for pictures; give --overlay PNG or --planes PNG too")
    check_window(options.window, "--window")


def _check_folder(options: Options, flag: str) -> None:
    """Check that `--out` can be a folder.

    Raises:
        UserError: it is a file, or has the name of one.
    """
    if Path(options.out).is_file() or suffix_of(options.out, segmentation_suffixes()):
        raise UserError(f"--out: {options.out} is not a folder; with {flag}, give a folder")

"""`sam2-3dmed evaluate`: scores of a checkpoint, of any method's files, or of finished results taken together."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from sam2_3dmed_jax.commands.command_line import (
    CheckpointName,
    Parser,
    add_compute_dtype,
    add_memory_selection,
    add_zoom,
    start,
    terminated_as_interrupted,
)
from sam2_3dmed_jax.config import MemorySelection
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.compute_dtype import ComputeDtypeChoice
from sam2_3dmed_jax.volume.modality import WORDS

HELP = "score a checkpoint on held-out cases, or any method's NIfTI files"

FILES_ONLY = ("remap", "images", "nearest_component", "workers")
CHECKPOINT_ONLY = ("without_bd", "band_mm", "prompts_from", "save", "memory_selection", "zoom")
# Scoring options that `--results` accepts: those with a value even when the flag is not given.
WITH_RESULTS = {"out", "resample", "metrics", "without_bd", "nearest_component"}


@dataclass(frozen=True)
class Options:
    """The arguments of `evaluate`. None: not given.

    Fields of the same names go into `data.split_choice` and `evaluation.evaluate.ScoringOptions`.
    """

    checkpoint: str | None
    data: str | None
    predictions: str | None
    references: str | None
    results: tuple[str, ...]
    compare: tuple[str, ...]
    out: str
    # A checkpoint's held-out cases, and how it is run:
    fold: int | None
    folds: int | None
    split: str | None
    split_seed: int | None
    splits: str | None
    patients: str | None
    order: str
    zoom: str | None
    compute_dtype: ComputeDtypeChoice
    memory_selection: MemorySelection | None
    prompts_from: str | None
    without_bd: bool
    band_mm: float | None
    save: str | None
    modality: str | None
    # Files of any method:
    nearest_component: bool
    images: str | None
    remap: str | None
    workers: int | None
    # Scoring:
    protocol: str | None
    interactions: int | None
    initial: str | None
    click_rule: str | None
    refinement: str | None
    classes: str | None
    targets: str | None
    tumours: str | None
    tolerance_mm: str | None
    definition: str | None
    empty: str | None
    metrics: str
    resample: bool
    method: str | None
    trained_on_these_cases: str | None
    seed: str | None


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    _add_sources(parser)
    _add_scoring(parser)
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for cases.csv, summary.json and report.html"
    )


def _add_sources(parser: Parser) -> None:
    """Define what is scored."""
    parser.add_argument(
        "checkpoint",
        type=CheckpointName,
        metavar="CKPT",
        nargs="?",
        help="folder of a native checkpoint, or a name of `download`",
    )
    parser.add_argument("data", metavar="DATA", nargs="?", help="folder of a dataset in MSD or nnU-Net layout")
    parser.add_argument(
        "--fold", type=int, metavar="N", help="held-out fold (default: the fold of the training run, or 0)"
    )
    parser.add_argument(
        "--folds", type=int, metavar="N", help="number of folds (default: as in the training run, or 5)"
    )
    parser.add_argument(
        "--split",
        choices=("kfold", "80/20"),
        help="how cases are held out (default: as in the training run, or kfold)",
    )
    parser.add_argument(
        "--split-seed", type=int, metavar="N", help="random seed of 80/20 (default: as in the training run, or 0)"
    )
    parser.add_argument(
        "--splits",
        metavar="FILE",
        help="splits_final.json of nnU-Net, or split.json of a run (default: as in the training run, or none)",
    )
    parser.add_argument(
        "--patients",
        metavar="CSV",
        help="table with the columns case and patient; cases of one patient stay together (default: as in the "
        "training run, or none)",
    )
    parser.add_argument(
        "--order",
        choices=("sequential", "independent"),
        default="sequential",
        help="order of the two propagation directions",
    )
    add_zoom(parser)
    add_compute_dtype(parser)
    add_memory_selection(parser)
    parser.add_argument(
        "--prompts-from",
        metavar="DIR",
        help="an automatic method's predictions of the held-out cases; prompts of the checkpoint are drawn from them "
        "instead of the references",
    )
    parser.add_argument("--without-bd", action="store_true", help="leave out the boundary branch of the checkpoint")
    parser.add_argument(
        "--band-mm",
        type=float,
        metavar="MM",
        help="half width, in mm, of the band around the boundary in which the probabilities of a checkpoint are "
        "evaluated (default: 5)",
    )
    parser.add_argument(
        "--save", metavar="DIR", help="folder for the label maps of the checkpoint, CASE.nii.gz (default: not kept)"
    )
    parser.add_argument(
        "--modality",
        choices=tuple(WORDS),
        help="modality of the scans (default: as DATA declares it, otherwise as the checkpoint was trained, or ct)",
    )
    parser.add_argument("--predictions", metavar="DIR", help="label maps of any method; a missing one counts as empty")
    parser.add_argument(
        "--references", metavar="DIR", help="reference label maps, with the same names as the predictions"
    )
    parser.add_argument(
        "--nearest-component",
        action="store_true",
        help="reduce --predictions to the component that is nearest to one click in the reference, per object",
    )
    parser.add_argument(
        "--images", metavar="DIR", help="scans of the references, for the pictures of the report (default: none)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that score --predictions (default: one per core, at most 8, each with four cases or more)",
    )
    parser.add_argument(
        "--results",
        action="append",
        default=[],
        metavar="DIR",
        help="folder of finished results, such as one fold or seed; may be repeated",
    )
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="DIR",
        help="results of another method, for a paired comparison; may be repeated",
    )


def _add_scoring(parser: Parser) -> None:
    """Define how objects are prompted and measured, and the columns that describe the method."""
    parser.add_argument(
        "--protocol",
        help="one-click (default for a checkpoint), box-mid, one-click-per-component, oracle-clip, or interactive: "
        "corrective clicks after an initial prompt; with --predictions, how their method was prompted from the "
        "references (default: not at all), and for interactive one folder per step, DIR/step_0, DIR/step_1, ...",
    )
    parser.add_argument(
        "--interactions",
        type=int,
        metavar="N",
        help="corrective clicks per object of the protocol interactive (default: 5; of files, as many as folders)",
    )
    parser.add_argument(
        "--initial",
        metavar="box|click|none",
        help="prompt of each object before the first click of interactive (default: box)",
    )
    parser.add_argument(
        "--click-rule",
        metavar="mm|voxels|challenge",
        help="distances that place a click deepest inside the largest error, in interactive; challenge: in voxels, "
        "with ties as in the CVPR 2025 challenge (default: mm)",
    )
    parser.add_argument(
        "--refinement",
        metavar="tracked|anew",
        help="how the model takes a click of interactive: from memory on top of its mask, or anew from all prompts, as "
        "predict and serve do (default: tracked)",
    )
    parser.add_argument(
        "--classes",
        metavar="1=spleen,2+3,...",
        help="label sets to score: values or declared names, unions with +, names after = (default: all labels)",
    )
    parser.add_argument(
        "--targets",
        metavar="1+2,2",
        help="objects to prompt; a later one is written over an earlier one (default: derived from --classes)",
    )
    parser.add_argument(
        "--tumours",
        metavar="NAME,...",
        help="classes that are counted by lesions, or none (default: recognised by name, such as cancer)",
    )
    parser.add_argument(
        "--tolerance-mm",
        metavar="MM",
        help="tolerance of NSD, in mm; per class as cancer=2,... (default: by MSD task: lung 2, pancreas 5; "
        "otherwise 3)",
    )
    parser.add_argument(
        "--definition", help="definition of surface metrics: monai or medpy (default: surface-distance)"
    )
    parser.add_argument(
        "--empty",
        help="distances if one mask is empty: nan, or diagonal (of the image; default)",
    )
    parser.add_argument(
        "--metrics", choices=("all", "overlap"), default="all", help="overlap leaves out the surface metrics"
    )
    parser.add_argument(
        "--resample",
        action="store_true",
        help="resample files on other grids by nearest neighbour, and slanted grids for the surface metrics",
    )
    parser.add_argument(
        "--remap", metavar="2=1,3+4=1", help="label sets of --predictions, and the values that replace theirs"
    )
    parser.add_argument("--method", metavar="NAME", help="method name in each row (default: the name of the folder)")
    parser.add_argument(
        "--trained-on-these-cases",
        choices=("yes", "no", "unknown"),
        help="whether the method was trained on the scored cases (default: derived from the training run)",
    )
    parser.add_argument(
        "--seed", metavar="N", help="seed of the training run, for each row (default: read from the training run)"
    )


def run(options: Options) -> None:
    """Score, summarise, compare and write the tables and the report."""
    _check(options)
    _check_outputs(options)
    start()
    from sam2_3dmed_jax.data.split_choice import SPLIT_FIELDS
    from sam2_3dmed_jax.evaluation.evaluate import (
        ScoringOptions,
        read_all,
        score_checkpoint,
        score_files,
        score_results,
    )
    from sam2_3dmed_jax.hub.resolve import checkpoint_folder
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

    values = _given(options, [field.name for field in fields(ScoringOptions)])
    if options.results and (fixed := sorted(values.keys() - WITH_RESULTS)):
        raise UserError(f"{_flag(fixed[0])}: finished results cannot change; leave it out with --results")
    scoring = ScoringOptions(**values, others=read_all(options.compare))
    split = _given(options, SPLIT_FIELDS)
    checkpoint = str(checkpoint_folder(options.checkpoint)) if options.checkpoint else ""
    with terminated_as_interrupted(), ConsoleProgress() as progress:
        if options.results:
            lines = score_results(options.results, scoring)
        elif options.predictions and options.references:
            folders = options.predictions, options.references, options.images
            lines = score_files(*folders, options.remap, split.get("fold", ""), scoring, progress, options.workers)
        else:
            assert options.data
            run = options.order, options.compute_dtype
            lines = score_checkpoint(checkpoint, options.data, *run, split, scoring, progress, options.memory_selection)
    print("\n".join(lines))


def _check(options: Options) -> None:
    """Check that the flags belong together.

    Raises:
        UserError: they do not.
    """
    if bool(options.predictions) != bool(options.references):
        raise UserError("give both --predictions DIR and --references DIR")
    sources = bool(options.checkpoint) + bool(options.predictions) + bool(options.results)
    if sources != 1 or (options.checkpoint and not options.data):
        raise UserError(
            "give one of CKPT and DATA, --predictions DIR and --references DIR, or --results DIR (may be repeated)"
        )
    for name in FILES_ONLY:
        if getattr(options, name) not in (None, False) and not options.predictions:
            raise UserError(f"{_flag(name)} is for --predictions; leave it out")
    if options.modality and not (options.checkpoint or options.images):
        raise UserError("--modality is for a checkpoint, or for --images; leave it out")
    for name in CHECKPOINT_ONLY:
        if getattr(options, name) and not options.checkpoint:
            raise UserError(f"{_flag(name)} is for a checkpoint; leave it out")
    if options.nearest_component and options.protocol is not None:
        raise UserError("--nearest-component is a protocol of its own; leave out --protocol")
    if options.zoom not in (None, "off") and options.protocol == "oracle-clip":
        raise UserError("--zoom: it is for whole volumes, and oracle-clip segments clips; leave out one of them")


def _check_outputs(options: Options) -> None:
    """Check that no output replaces an input; the names of the files in `--save` are checked with the cases.

    Raises:
        UserError: one does.
    """
    from sam2_3dmed_jax.evaluation.evaluate import results_input, scans_input
    from sam2_3dmed_jax.evaluation.journal import FILE
    from sam2_3dmed_jax.evaluation.result_files import RESULT_FILES
    from sam2_3dmed_jax.runtime.output_plan import Input, OutputFolder, check_outputs

    scans = ("predictions", "references", "images", "prompts_from")
    results = [*(("--results", folder) for folder in options.results), *(("--compare", it) for it in options.compare)]
    check_outputs(
        [
            OutputFolder("--out", options.out, owns=(*RESULT_FILES, FILE)),
            *([OutputFolder("--save", options.save, owns=())] if options.save else []),
        ],
        [
            *(scans_input(_flag(name), folder) for name in scans if (folder := getattr(options, name))),
            *(results_input(flag, folder) for flag, folder in results),
            *(Input(_flag(name), file) for name in ("splits", "patients") if (file := getattr(options, name))),
        ],
    )


def _given(options: Options, names: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """Return the options of these names that are not None."""
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"

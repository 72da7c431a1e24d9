"""The command `sam2-3dmed`: one thin function a verb. Heavy imports happen inside, so that `--help` is quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from sam2_3dmed_jax.command import Parser, exit_code, joined_coordinates
from sam2_3dmed_jax.errors import UserError
from weights_conversion import commands as checkpoints

SEGMENTATIONS = (".nii", ".nii.gz", ".dcm")
PROMPT_FLAGS = ("point", "point_mm", "box", "mask", "scribble", "scribble_outside", "prompts")


class TrainHelp(argparse.Action):
    """`train --help`: its own arguments, then every field of an experiment."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print and exit with 0."""
        from sam2_3dmed_jax.experiment import fields_help

        print(parser.format_help())
        print(f"Every field of an experiment is a flag; defaults, unless it sets another:\n{fields_help()}")
        raise SystemExit(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = joined_coordinates(sys.argv[1:] if arguments is None else arguments)
    options, rest = _parser().parse_known_args(given)
    if rest and options.verb != "train":
        _parser().error(f"unknown argument '{rest[0]}'")
    return exit_code(lambda: VERBS[options.verb](options, rest), options.debug, "the same command goes on where it can")


def demo(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Train, score and segment on phantoms."""
    _start()
    from sam2_3dmed_jax.console import ConsoleProgress
    from sam2_3dmed_jax.demo import run_demo

    with ConsoleProgress() as progress:
        lines = run_demo(options.out, options.seed, progress, progress.training)
    print("\n".join(lines))


def phantom(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Write a synthetic dataset."""
    from sam2_3dmed_jax.console import ConsoleProgress
    from sam2_3dmed_jax.volume.phantom import write_phantom_dataset

    if options.cases < 1:
        raise UserError(f"--cases: {options.cases} is not a number of cases; give 1 or more")
    with ConsoleProgress() as progress:
        write_phantom_dataset(
            options.out, options.cases, options.seed, options.task, lambda done, all_: progress("phantoms", done, all_)
        )
    print(f"{options.cases} phantoms in {options.out}")


def train(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Train an experiment."""
    from sam2_3dmed_jax.experiment import read_experiment

    config = read_experiment(options.experiment, rest)
    _start()
    from sam2_3dmed_jax.console import ConsoleProgress
    from sam2_3dmed_jax.training import loop

    with ConsoleProgress() as progress:
        final = loop.train(config, options.out, progress.training)
    print(f"trained model in {final}")


def predict(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Segment a volume, or many, from prompts."""
    if options.cases:
        return _predict_cases(options)
    if not options.image:
        raise UserError("there is no image; give IMAGE, or --cases CSV|FOLDER for many")
    if not options.out.endswith(SEGMENTATIONS):
        raise UserError(f"--out: {options.out} is no name of a segmentation; let it end in .nii.gz, or .dcm for DICOM")
    if options.reference and not (options.overlay or options.planes):
        raise UserError("--reference is drawn in pictures; give --overlay PNG or --planes PNG too")
    if options.overlay and options.overlay == options.planes:
        raise UserError("--planes: it is the file of --overlay; give another")
    _start()
    from sam2_3dmed_jax import prediction
    from sam2_3dmed_jax.console import ConsoleProgress
    from sam2_3dmed_jax.inference.cases import Case
    from sam2_3dmed_jax.inference.predictor import VolumePredictor
    from sam2_3dmed_jax.inference.prompt_flags import PromptFlags
    from sam2_3dmed_jax.model.checkpoint import load_model

    prompts = PromptFlags(
        tuple(options.point),
        tuple(options.point_mm),
        tuple(options.box),
        options.mask,
        options.scribble,
        options.scribble_outside,
        tuple(options.prompts),
    )
    outputs = prediction.Outputs(options.out, options.separate, options.overlay, options.planes)
    case = Case(options.out, options.image, prompts, options.reference, options.volume)
    job = prediction.prepare(case, outputs, options.resample)
    predictor = VolumePredictor(load_model(options.checkpoint), options.order)
    with ConsoleProgress() as progress:
        lines = prediction.run(job, predictor, progress)
    print("\n".join(lines))
    print(f"segmentation in {options.out} (for research use only)")
    for path in job.separate.values():
        print(f"one object in {path}")
    for name in ("overlay", "planes"):
        if getattr(options, name):
            print(f"{name} in {getattr(options, name)}")


def _predict_cases(options: argparse.Namespace) -> None:
    """Segment the cases of a table or folder; those that fail are told at the end."""
    for name in ("image", *PROMPT_FLAGS, "reference", "volume"):
        if getattr(options, name) not in (None, []):
            flag = "IMAGE" if name == "image" else f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} goes with a single volume; with --cases, name it there")
    if Path(options.out).is_file() or options.out.endswith(SEGMENTATIONS):
        raise UserError(f"--out: {options.out} is no folder; with --cases, give one")
    _start()
    from sam2_3dmed_jax import prediction
    from sam2_3dmed_jax.console import ConsoleProgress
    from sam2_3dmed_jax.inference.cases import read_cases, without_prompts
    from sam2_3dmed_jax.inference.predictor import VolumePredictor
    from sam2_3dmed_jax.model.checkpoint import load_model

    cases = read_cases(options.cases)

    def outputs(name: str) -> prediction.Outputs:
        overlay = f"{options.overlay}/{name}.png" if options.overlay else None
        planes = f"{options.planes}/{name}_planes.png" if options.planes else None
        return prediction.Outputs(f"{options.out}/{name}.nii.gz", options.separate, overlay, planes)

    predictor = VolumePredictor(load_model(options.checkpoint), options.order)
    with ConsoleProgress() as progress:
        lines, failures = prediction.run_cases(cases, outputs, predictor, progress, options.resample, options.debug)
    for line in lines:
        print(line)
    if Path(options.cases).is_dir() and (bare := without_prompts(options.cases)):
        print(f"left out, as no prompts lie beside them: {', '.join(bare)}")
    print(f"{len(cases) - len(failures)} of {len(cases)} segmentations in {options.out} (for research use only)")
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}")
    if failures:
        raise UserError(
            f"--cases: {len(failures)} of {len(cases)} failed, for the reasons above; mend them and run this again, "
            "which skips the finished ones"
        )


def evaluate(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Score a checkpoint, or any method's files."""
    files = options.predictions or options.references
    if files and not (options.predictions and options.references):
        raise UserError("give both --predictions DIR and --references DIR")
    if bool(files) == bool(options.checkpoint) or (options.checkpoint and not options.data):
        raise UserError("give either CKPT and DATA, or --predictions DIR and --references DIR")
    _start()
    from sam2_3dmed_jax.console import ConsoleProgress
    from sam2_3dmed_jax.data.msd import read_dataset
    from sam2_3dmed_jax.data.splits import fold_cases
    from sam2_3dmed_jax.evaluation import evaluator
    from sam2_3dmed_jax.inference.predictor import VolumePredictor
    from sam2_3dmed_jax.model.checkpoint import load_model

    with ConsoleProgress() as progress:
        if files:
            classes = _classes(options.classes, {})
            rows = evaluator.evaluate_files(Path(options.predictions), Path(options.references), classes, progress)
        else:
            dataset = read_dataset(options.data)
            held_out = set(fold_cases([case.id for case in dataset.cases], options.fold, options.folds)[1])
            cases = [case for case in dataset.cases if case.id in held_out]
            classes = _classes(options.classes, dataset.labels)
            predictor = VolumePredictor(load_model(options.checkpoint), options.order)
            rows = evaluator.evaluate_model(predictor, cases, classes, options.protocol, progress)
    summary = evaluator.summarise(rows)
    evaluator.write_results(rows, summary, Path(options.out))
    for name, entry in summary["classes"].items():
        mean = entry["dice"]["mean"]
        print(f"{name}: mean Dice {'none' if mean is None else f'{mean:.3f}'} over {entry['dice']['n']} cases")
    print(f"cases.csv and summary.json in {options.out} (for research use only)")


def doctor(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Say what this machine has and what is wrong."""
    from sam2_3dmed_jax.doctor import report

    facts, wrong = report()
    print("\n".join(facts))
    if wrong:
        raise UserError("; ".join(wrong))
    print("nothing is wrong")


VERBS = {
    "demo": demo,
    **checkpoints.VERBS,
    "phantom": phantom,
    "train": train,
    "predict": predict,
    "evaluate": evaluate,
    "doctor": doctor,
}


def _parser() -> Parser:
    common = Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="print the traceback of an error")
    parser = Parser(prog="sam2-3dmed", description="SAM2-3dMed in JAX. For research use only.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)

    def verb(name: str, text: str, **extra: Any) -> argparse.ArgumentParser:
        formatter = argparse.ArgumentDefaultsHelpFormatter
        return verbs.add_parser(name, help=text, description=text, parents=[common], formatter_class=formatter, **extra)

    p = verb("demo", "make phantoms, train a nano SAM2-3dMed on them, score it and segment one; CPU, no downloads")
    p.add_argument("--out", default="demo_run", help="folder for all it makes")
    p.add_argument("--seed", type=int, default=0, help="of the phantoms")

    checkpoints.add_verbs(verb)

    p = verb("phantom", "write a synthetic CT dataset in MSD layout")
    p.add_argument("out", help="folder to write")
    p.add_argument("--cases", type=int, default=40, help="number of cases")
    p.add_argument("--seed", type=int, default=0, help="of the anatomies")
    p.add_argument("--task", choices=("spleen", "pancreas", "lung"), default="spleen", help="which organs are labelled")

    p = verb(
        "train", "train an experiment; resumes by itself when DIR holds a run. Every field is a flag", add_help=False
    )
    p.add_argument("experiment", metavar="EXPERIMENT.py", help="file with get_config(); then --any.field value")
    p.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    p.add_argument("-h", "--help", nargs=0, action=TrainHelp, help="show this and every field, with units and defaults")

    p = verb("predict", "segment a volume, or many, from prompts; x,y,z are 0-based voxel indices of IMAGE as stored")
    p.add_argument("checkpoint", metavar="CKPT", help="folder of a native checkpoint")
    p.add_argument("image", metavar="IMAGE", nargs="?", help="NIfTI, NRRD or MHA file, or folder of a DICOM series")
    p.add_argument(
        "--out", required=True, metavar="SEG", help="*.nii.gz on IMAGE's grid, values are object ids; *.dcm: DICOM-SEG"
    )
    p.add_argument("--volume", type=int, metavar="N", help="of a 4D NIfTI, the volume to segment, from 0")
    p.add_argument("--resample", action="store_true", help="DICOM slices with gaps or tilt: put them on a regular grid")
    click = "x,y,z[,1|0[,object]]"
    p.add_argument("--point", action="append", default=[], metavar=click, help="a click, inside (1) or outside (0)")
    p.add_argument("--point-mm", action="append", default=[], metavar=click, help="the same in RAS millimetres")
    p.add_argument(
        "--box", action="append", default=[], metavar="i0,j0,k0,i1,j1,k1[,object]", help="two inclusive voxel corners"
    )
    p.add_argument("--mask", metavar="MASK.nii.gz", help="label map on IMAGE's grid; its slices are prompts")
    p.add_argument(
        "--scribble", metavar="STROKES.nii.gz", help="strokes on IMAGE's grid, values are objects; sampled to clicks"
    )
    p.add_argument("--scribble-outside", metavar="VALUE", help="strokes of this value lie outside of the objects")
    p.add_argument(
        "--prompts", action="append", default=[], metavar="FILE", help="JSON of prompts, or 3D Slicer's .mrk.json"
    )
    p.add_argument("--separate", action="store_true", help="also one file an object, SEG_object1.nii.gz, which overlap")
    p.add_argument("--overlay", metavar="PNG", help="contact sheet of slices with contours; with --cases a folder")
    p.add_argument("--planes", metavar="PNG", help="three planes through each object; with --cases a folder")
    p.add_argument("--reference", metavar="LABELS.nii.gz", help="label map drawn into the pictures")
    p.add_argument("--cases", metavar="CSV|FOLDER", help="many volumes instead of IMAGE; --out is then a folder")
    p.add_argument("--order", choices=("sequential", "independent"), default="sequential", help="of the directions")

    p = verb("evaluate", "score a checkpoint on held-out cases, or any method's NIfTI files")
    p.add_argument("checkpoint", metavar="CKPT", nargs="?", help="folder of a native checkpoint")
    p.add_argument("data", metavar="DATA", nargs="?", help="dataset in MSD layout")
    p.add_argument("--fold", type=int, default=0, help="held-out fold")
    p.add_argument("--folds", type=int, default=5, help="number of folds")
    p.add_argument("--protocol", default="one-click", help="one-click or box-mid")
    p.add_argument("--order", choices=("sequential", "independent"), default="sequential", help="of the directions")
    p.add_argument("--predictions", metavar="DIR", help="label maps of any method")
    p.add_argument("--references", metavar="DIR", help="their references, of the same names")
    p.add_argument("--classes", metavar="1=spleen,...", help="label values or names to score (default: all)")
    p.add_argument("--out", required=True, metavar="DIR", help="folder for cases.csv and summary.json")

    verb("doctor", "devices, versions, caches, optional parts, and what is wrong")
    return parser


def _start() -> None:
    """What every command that computes begins with."""
    from sam2_3dmed_jax import compilation_cache, host_memory

    host_memory.keep()
    compilation_cache.enable()


def _classes(text: str | None, declared: dict[int, str]) -> dict[int, str]:
    """`1=spleen,2,cancer` to value and name; with a dataset, they must be declared. None: all declared."""
    if not text:
        return declared
    classes = {}
    values = {name: str(value) for value, name in declared.items()}
    for part in text.split(","):
        value, _, name = part.partition("=")
        value = values.get(value, value)
        if not value.strip().isdigit() or int(value) == 0:
            known = f"one of {', '.join(values)}" if values else "VALUE=NAME"
            raise UserError(f"--classes: '{part}' is no label value, nor {known}; give some, such as 1=spleen")
        if declared and int(value) not in declared:
            raise UserError(f"--classes: the dataset has no label {value}; choose from {sorted(declared)}")
        classes[int(value)] = name or declared.get(int(value), value)
    return classes


if __name__ == "__main__":
    sys.exit(main())

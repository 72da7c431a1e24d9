"""The command `sam2-3dmed`: one thin function a verb. Heavy imports happen inside, so that `--help` is quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from sam2_3dmed_jax import arguments
from sam2_3dmed_jax.command import exit_code, joined_coordinates, terminated_as_interrupted
from sam2_3dmed_jax.errors import UserError, naming
from sam2_3dmed_jax.training import processes
from weights_conversion import commands as checkpoints

SEGMENTATIONS = (".nii", ".nii.gz", ".dcm")


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = arguments.parser(checkpoints.add_verbs)
    options, rest = parser.parse_known_args(joined_coordinates(sys.argv[1:] if words is None else words))
    if rest and options.verb not in ("train", "plan", "sweep"):
        parser.error(f"unknown argument '{rest[0]}'")
    again = "the same command goes on where it can"
    code = exit_code(lambda: VERBS[options.verb](options, rest), options.debug, again)
    processes.leave(code)
    return code


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


def prepare(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Write a dataset as shards."""
    from sam2_3dmed_jax.config import PrepareConfig
    from sam2_3dmed_jax.console import ConsoleProgress
    from sam2_3dmed_jax.data.msd import read_dataset
    from sam2_3dmed_jax.data.prepare import prepare as write_prepared
    from sam2_3dmed_jax.experiment import read_experiment
    from sam2_3dmed_jax.volume.resample import parse_spacing

    if options.experiment and not options.preview:
        raise UserError("--experiment says which clips --preview draws; give --preview PNG too")
    experiment = read_experiment(options.experiment) if options.experiment else None
    with naming("--spacing"):
        settings = PrepareConfig(parse_spacing(options.spacing)) if options.spacing is not None else PrepareConfig()
    dataset = read_dataset(options.dataset)
    with terminated_as_interrupted(), ConsoleProgress() as progress:
        report = write_prepared(dataset, options.out, settings, workers=options.workers, progress=progress)
    if options.debug:
        print("".join(report.tracebacks.values()), end="", file=sys.stderr)
    print("\n".join(report.lines))
    if not report.dataset.cases:
        raise UserError(f"{options.dataset}: no case could be prepared, for the reasons above; mend them and run again")
    if options.preview:
        from sam2_3dmed_jax.preview import DEFAULT, preview_dataset

        preview_dataset(options.preview, report.dataset, experiment or DEFAULT)
        print(f"preview in {options.preview}")


def train(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Train an experiment."""
    if options.profile < 0:
        raise UserError(f"--profile: {options.profile} is no number of steps; give 0 or more")
    from sam2_3dmed_jax.experiment import read_experiment

    processes.join()
    with processes.ending_together():
        config = read_experiment(options.experiment, rest)
        _start()
        from sam2_3dmed_jax.console import ConsoleProgress
        from sam2_3dmed_jax.training import loop

        # In several processes, JAX notices SIGTERM for all of them.
        interrupted = nullcontext() if processes.several() else terminated_as_interrupted()
        with interrupted, ConsoleProgress() as progress:
            final = loop.train(config, options.out, progress.training, progress, profile=options.profile)
    if processes.is_first():
        print(f"trained model in {final}")


def predict(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Segment a volume, or many, from prompts."""
    if options.prompts_from and not options.msd_test:
        raise UserError("--prompts-from is for --msd-test TASK; give that too")
    if options.msd_test:
        return _predict_test_set(options)
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

    words: dict[str, Any] = {flag.name: getattr(options, flag.name) for flag in fields(PromptFlags)}
    words |= {name: tuple(given) for name, given in words.items() if isinstance(given, list)}
    outputs = prediction.Outputs(options.out, options.separate, options.overlay, options.planes)
    case = Case(options.out, options.image, PromptFlags(**words), options.reference, options.volume)
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


def _predict_test_set(options: argparse.Namespace) -> None:
    """Segment the test images of a Decathlon task, in the challenge's form."""
    from sam2_3dmed_jax.inference.cases import COLUMNS

    for name in (*(column for column in COLUMNS if column in options), "separate", "overlay", "planes", "resample"):
        if getattr(options, name) not in (None, [], False):
            flag = "IMAGE" if name == "image" else f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} goes with other volumes; leave it out with --msd-test")
    if bool(options.cases) == bool(options.prompts_from):
        raise UserError("--msd-test: give either --cases CSV|FOLDER, with prompts, or --prompts-from DIR")
    if Path(options.out).is_file() or options.out.endswith(SEGMENTATIONS):
        raise UserError(f"--out: {options.out} is no folder; with --msd-test, give one")
    _start()
    from sam2_3dmed_jax.challenge import export
    from sam2_3dmed_jax.console import ConsoleProgress

    how = options.cases, options.prompts_from, options.protocol, options.order
    with ConsoleProgress() as progress:
        lines = export(options.checkpoint, options.msd_test, options.out, *how, progress)
    print("\n".join(lines))


def _predict_cases(options: argparse.Namespace) -> None:
    """Segment the cases of a table or folder; those that fail are told at the end."""
    from sam2_3dmed_jax.inference.cases import COLUMNS, read_cases, without_prompts

    for name in (column for column in COLUMNS if column in options):
        if getattr(options, name) not in (None, []):
            flag = "IMAGE" if name == "image" else f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} goes with a single volume; with --cases, name it there")
    if Path(options.out).is_file() or options.out.endswith(SEGMENTATIONS):
        raise UserError(f"--out: {options.out} is no folder; with --cases, give one")
    _start()
    from sam2_3dmed_jax import prediction
    from sam2_3dmed_jax.console import ConsoleProgress
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
    """Score a checkpoint, any method's files, or finished results together."""
    if bool(options.predictions) != bool(options.references):
        raise UserError("give both --predictions DIR and --references DIR")
    if bool(options.checkpoint) + bool(options.predictions) + bool(options.results) != 1 or (
        options.checkpoint and not options.data
    ):
        raise UserError(
            "give one of CKPT and DATA, --predictions DIR and --references DIR, or --results DIR (again for each)"
        )
    for name in ("remap", "images", "nearest_component"):
        if getattr(options, name) and not options.predictions:
            raise UserError(f"--{name.replace('_', '-')} is for --predictions; leave it out")
    for name in ("without_bd", "band_mm", "prompts_from", "save"):
        if getattr(options, name, False) and not options.checkpoint:
            raise UserError(f"--{name.replace('_', '-')} is for a checkpoint; leave it out")
    if options.nearest_component and "protocol" in options:
        raise UserError("--nearest-component is a protocol of its own; leave out --protocol")
    _start()
    from sam2_3dmed_jax import scoring
    from sam2_3dmed_jax.console import ConsoleProgress
    from sam2_3dmed_jax.data.split_choice import FIELDS

    words = {f.name: getattr(options, f.name) for f in fields(scoring.Wanted) if f.name in options}
    if options.results and (
        fixed := sorted(words.keys() - {"out", "resample", "metrics", "without_bd", "nearest_component"})
    ):
        raise UserError(f"--{fixed[0].replace('_', '-')}: finished results cannot change; leave it out with --results")
    wanted = scoring.Wanted(**words, others=scoring.read_all(options.compare))
    split = {name: getattr(options, name) for name in FIELDS if name in options}
    with ConsoleProgress() as progress:
        if options.results:
            lines = scoring.score_results(options.results, wanted)
        elif options.predictions:
            folders = options.predictions, options.references, options.images
            lines = scoring.score_files(*folders, options.remap, split.get("fold", ""), wanted, progress)
        else:
            lines = scoring.score_checkpoint(options.checkpoint, options.data, options.order, split, wanted, progress)
    print("\n".join(lines))


def sweep(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Score checkpoints under many settings."""
    from sam2_3dmed_jax.experiment import read_spec

    if not options.dry_run:
        processes.join()
    with processes.ending_together():
        spec = read_spec(options.spec, rest)
        _start()
        from sam2_3dmed_jax.console import ConsoleProgress
        from sam2_3dmed_jax.evaluation.sweep import run

        checked = run.read_sweep(spec)
        if options.dry_run:
            print(checked.size)
            return
        with terminated_as_interrupted(), ConsoleProgress() as progress:
            lines = run.run_sweep(checked, options.out, options.shard, progress)
    if processes.is_first():
        print("\n".join(lines))


def plan(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Say what an experiment takes on chips that need not be there."""
    import json

    from sam2_3dmed_jax.console import ConsoleProgress
    from sam2_3dmed_jax.plan.process import plan as make_plan
    from sam2_3dmed_jax.plan.request import read_request

    config = read_request(options.experiment, rest, options.model, options.image_size, options.slices)
    with terminated_as_interrupted(), ConsoleProgress() as progress:
        made = make_plan(config, options.topology, options.what, lambda stage: progress("plan", 0, 1, stage))
    print(json.dumps(made.record(), indent=2) if options.json else "\n".join(made.lines()))


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
    "prepare": prepare,
    "train": train,
    "predict": predict,
    "evaluate": evaluate,
    "sweep": sweep,
    "plan": plan,
    "doctor": doctor,
}


def _start() -> None:
    """What every command that computes begins with."""
    from absl import logging

    from sam2_3dmed_jax import compilation_cache, host_memory

    logging.set_verbosity(logging.FATAL)  # Orbax logs, with pages of tracebacks, what it also raises
    host_memory.keep()
    compilation_cache.enable()


if __name__ == "__main__":
    sys.exit(main())

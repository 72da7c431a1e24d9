"""`sam2-3dmed predict`: one volume, a table of them, or a challenge's test set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.commands.command_line import start
from sam2_3dmed_jax.errors import UserError

SEGMENTATIONS = (".nii", ".nii.gz", ".dcm")


def predict(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Segment a volume, or many, from prompts."""
    if options.prompts_from and not options.msd_test:
        raise UserError("--prompts-from is for --msd-test TASK; give that too")
    if options.msd_test:
        return _test_set(options)
    if options.cases:
        return _cases(options)
    if not options.image:
        raise UserError("there is no image; give IMAGE, or --cases CSV|FOLDER for many")
    if not options.out.endswith(SEGMENTATIONS):
        raise UserError(f"--out: {options.out} is no name of a segmentation; let it end in .nii.gz, or .dcm for DICOM")
    if options.reference and not (options.overlay or options.planes):
        raise UserError("--reference is drawn in pictures; give --overlay PNG or --planes PNG too")
    if options.overlay and options.overlay == options.planes:
        raise UserError("--planes: it is the file of --overlay; give another")
    start()
    from sam2_3dmed_jax.commands import prediction
    from sam2_3dmed_jax.inference.predictor import VolumePredictor
    from sam2_3dmed_jax.model.checkpoint import load_model
    from sam2_3dmed_jax.prompts.case_table import Case
    from sam2_3dmed_jax.prompts.flags import PromptFlags
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

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


def _test_set(options: argparse.Namespace) -> None:
    """Segment the test images of a Decathlon task, in the challenge's form."""
    from sam2_3dmed_jax.prompts.case_table import COLUMNS

    for name in (*(column for column in COLUMNS if column in options), "separate", "overlay", "planes", "resample"):
        if getattr(options, name) not in (None, [], False):
            flag = "IMAGE" if name == "image" else f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} goes with other volumes; leave it out with --msd-test")
    if bool(options.cases) == bool(options.prompts_from):
        raise UserError("--msd-test: give either --cases CSV|FOLDER, with prompts, or --prompts-from DIR")
    if Path(options.out).is_file() or options.out.endswith(SEGMENTATIONS):
        raise UserError(f"--out: {options.out} is no folder; with --msd-test, give one")
    start()
    from sam2_3dmed_jax.evaluation.submission import export
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

    how = options.cases, options.prompts_from, options.protocol, options.order
    with ConsoleProgress() as progress:
        lines = export(options.checkpoint, options.msd_test, options.out, *how, progress)
    print("\n".join(lines))


def _cases(options: argparse.Namespace) -> None:
    """Segment the cases of a table or folder; those that fail are told at the end."""
    from sam2_3dmed_jax.prompts.case_table import COLUMNS, read_cases, without_prompts

    for name in (column for column in COLUMNS if column in options):
        if getattr(options, name) not in (None, []):
            flag = "IMAGE" if name == "image" else f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} goes with a single volume; with --cases, name it there")
    if Path(options.out).is_file() or options.out.endswith(SEGMENTATIONS):
        raise UserError(f"--out: {options.out} is no folder; with --cases, give one")
    start()
    from sam2_3dmed_jax.commands import prediction
    from sam2_3dmed_jax.inference.predictor import VolumePredictor
    from sam2_3dmed_jax.model.checkpoint import load_model
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

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

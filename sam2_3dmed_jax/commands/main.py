"""The command `sam2-3dmed`: one thin function a verb. Heavy imports happen inside, so that `--help` is quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields

from sam2_3dmed_jax.commands import arguments
from sam2_3dmed_jax.commands.command_line import exit_code, joined_coordinates, start, terminated_as_interrupted
from sam2_3dmed_jax.commands.predict import predict
from sam2_3dmed_jax.errors import UserError, naming
from sam2_3dmed_jax.runtime import distributed
from weights_conversion import commands as checkpoints


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = arguments.parser(checkpoints.add_verbs)
    options, rest = parser.parse_known_args(joined_coordinates(sys.argv[1:] if words is None else words))
    if rest and options.verb not in ("train", "plan", "sweep"):
        parser.error(f"unknown argument '{rest[0]}'")
    again = "the same command goes on where it can"
    code = exit_code(lambda: VERBS[options.verb](options, rest), options.debug, again)
    distributed.leave(code)
    return code


def demo(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Train, score and segment on phantoms."""
    start()
    from sam2_3dmed_jax.commands.demo import run_demo
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

    with ConsoleProgress() as progress:
        lines = run_demo(options.out, options.seed, progress, progress.training)
    print("\n".join(lines))


def phantom(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Write a synthetic dataset."""
    from sam2_3dmed_jax.phantom import write_phantom_dataset
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

    if options.cases < 1:
        raise UserError(f"--cases: {options.cases} is not a number of cases; give 1 or more")
    with ConsoleProgress() as progress:
        write_phantom_dataset(
            options.out, options.cases, options.seed, options.task, lambda done, all_: progress("phantoms", done, all_)
        )
    print(f"{options.cases} phantoms in {options.out}")


def prepare(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Write a dataset as shards."""
    from sam2_3dmed_jax.commands.experiment_files import read_experiment
    from sam2_3dmed_jax.config import PrepareConfig
    from sam2_3dmed_jax.data.datasets import read_dataset
    from sam2_3dmed_jax.data.prepare.prepare import prepare as write_prepared
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress
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
        from sam2_3dmed_jax.pictures.preview import DEFAULT, preview_dataset

        preview_dataset(options.preview, report.dataset, experiment or DEFAULT)
        print(f"preview in {options.preview}")


def train(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Train an experiment."""
    if options.profile < 0:
        raise UserError(f"--profile: {options.profile} is no number of steps; give 0 or more")
    from sam2_3dmed_jax.commands.experiment_files import read_experiment

    distributed.join()
    with distributed.ending_together():
        config = read_experiment(options.experiment, rest)
        start()
        from sam2_3dmed_jax.runtime.progress import ConsoleProgress
        from sam2_3dmed_jax.training import loop

        # In several processes, JAX notices SIGTERM for all of them.
        interrupted = nullcontext() if distributed.several() else terminated_as_interrupted()
        with interrupted, ConsoleProgress() as progress:
            final = loop.train(config, options.out, progress.training, progress, profile=options.profile)
    if distributed.is_first():
        print(f"trained model in {final}")


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
    start()
    from sam2_3dmed_jax.data.split_choice import FIELDS
    from sam2_3dmed_jax.evaluation import evaluate
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

    words = {f.name: getattr(options, f.name) for f in fields(evaluate.Wanted) if f.name in options}
    if options.results and (
        fixed := sorted(words.keys() - {"out", "resample", "metrics", "without_bd", "nearest_component"})
    ):
        raise UserError(f"--{fixed[0].replace('_', '-')}: finished results cannot change; leave it out with --results")
    wanted = evaluate.Wanted(**words, others=evaluate.read_all(options.compare))
    split = {name: getattr(options, name) for name in FIELDS if name in options}
    with ConsoleProgress() as progress:
        if options.results:
            lines = evaluate.score_results(options.results, wanted)
        elif options.predictions:
            folders = options.predictions, options.references, options.images
            lines = evaluate.score_files(*folders, options.remap, split.get("fold", ""), wanted, progress)
        else:
            lines = evaluate.score_checkpoint(options.checkpoint, options.data, options.order, split, wanted, progress)
    print("\n".join(lines))


def sweep(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Score checkpoints under many settings."""
    from sam2_3dmed_jax.commands.experiment_files import read_spec

    if not options.dry_run:
        distributed.join()
    with distributed.ending_together():
        spec = read_spec(options.spec, rest)
        start()
        from sam2_3dmed_jax.evaluation.sweep import run
        from sam2_3dmed_jax.runtime.progress import ConsoleProgress

        checked = run.read_sweep(spec)
        if options.dry_run:
            print(checked.size)
            return
        with terminated_as_interrupted(), ConsoleProgress() as progress:
            lines = run.run_sweep(checked, options.out, options.shard, progress)
    if distributed.is_first():
        print("\n".join(lines))


def plan(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Say what an experiment takes on chips that need not be there."""
    import json

    from sam2_3dmed_jax.commands.plan import read_request
    from sam2_3dmed_jax.plan.process import plan as make_plan
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

    config = read_request(options.experiment, rest, options.model, options.image_size, options.slices)
    with terminated_as_interrupted(), ConsoleProgress() as progress:
        made = make_plan(config, options.topology, options.what, lambda stage: progress("plan", 0, 1, stage))
    print(json.dumps(made.record(), indent=2) if options.json else "\n".join(made.lines()))


def doctor(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Say what this machine has and what is wrong."""
    from sam2_3dmed_jax.commands.doctor import report

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


if __name__ == "__main__":
    sys.exit(main())

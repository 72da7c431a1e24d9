"""`sam2-3dmed train`: an experiment, from its file and flags to a trained model."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from sam2_3dmed_jax.commands.command_line import Parser, start, terminated_as_interrupted
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime import distributed

HELP = "train an experiment; resumes when DIR contains a run. Every field is a flag"


@dataclass(frozen=True)
class Options:
    """The arguments of `train`."""

    experiment: str
    out: str
    profile: int
    accept_changed_data: bool
    field_flags: tuple[str, ...]


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument(
        "experiment",
        metavar="EXPERIMENT.py|NAME",
        help="file with get_config(), or a name that `experiments` lists, followed by --any.field value",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--profile", type=int, default=0, metavar="STEPS", help="number of steps to record in an xprof trace"
    )
    parser.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="resume although cases of the dataset were changed, added or removed; the run's data.json records it",
    )
    parser.add_fields(_fields)


def _fields(every: bool) -> str:
    from sam2_3dmed_jax.commands import field_help

    return field_help.experiment_help(field_help.TRAIN, every)


def run(options: Options) -> None:
    """Train, in one process or as one of several."""
    if options.profile < 0:
        raise UserError(f"--profile: {options.profile} is not a number of steps; give 0 or more")
    from sam2_3dmed_jax.commands.experiment_files import read_experiment

    distributed.initialize()
    with distributed.propagate_errors():
        config = read_experiment(options.experiment, options.field_flags)
        start()
        from sam2_3dmed_jax.hub.resolve import checkpoint_folder
        from sam2_3dmed_jax.runtime.progress import ConsoleProgress
        from sam2_3dmed_jax.training import loop

        if config.model.init:
            checkpoint_folder(config.model.init)  # downloads weights by name now, with a progress bar of its own
        # With several processes, JAX catches SIGTERM for all of them, so that they stop at the same step.
        interruption = nullcontext() if distributed.is_distributed() else terminated_as_interrupted()
        with interruption, ConsoleProgress() as progress:
            final = loop.train(
                config,
                options.out,
                progress,
                profile=options.profile,
                accept_changed_data=options.accept_changed_data,
            )
    if distributed.is_first_process():
        print(f"trained model in {final}")

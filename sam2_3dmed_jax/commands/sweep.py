"""`sam2-3dmed sweep`: checkpoints scored under many prompts, orders and thresholds."""

from __future__ import annotations

from dataclasses import dataclass

from sam2_3dmed_jax.commands.command_line import Parser, start, terminated_as_interrupted
from sam2_3dmed_jax.runtime import distributed

HELP = "score checkpoints under many prompts, orders and thresholds; resumes. Every field is a flag"


@dataclass(frozen=True)
class Options:
    """The arguments of `sweep`."""

    spec: str
    out: str
    dry_run: bool
    shard: str | None
    field_flags: tuple[str, ...]


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument(
        "spec",
        metavar="SPEC.py|NAME",
        help="file with get_spec(), or a name that `experiments` lists, followed by --any_field value value ...",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for sweep.csv, summary.csv, sweep.json and report.html"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything and print the number of cells")
    parser.add_argument("--shard", metavar="I/N", help="score only the I-th of N parts of the cases (default: all)")
    parser.add_fields(_fields)


def _fields(every: bool) -> str:
    from sam2_3dmed_jax.commands import field_help

    return field_help.sweep_help(every)


def run(options: Options) -> None:
    """Check the sweep and score its cells."""
    from sam2_3dmed_jax.commands.experiment_files import read_spec

    if not options.dry_run:
        distributed.initialize()
    with distributed.propagate_errors():
        spec = read_spec(options.spec, options.field_flags)
        start()
        from sam2_3dmed_jax.evaluation.sweep.run import read_sweep, run_sweep
        from sam2_3dmed_jax.runtime.progress import ConsoleProgress

        checked = read_sweep(spec)
        if options.dry_run:
            print(checked.size)
            return
        with terminated_as_interrupted(), ConsoleProgress() as progress:
            lines = run_sweep(checked, options.out, options.shard, progress)
    if distributed.is_first_process():
        print("\n".join(lines))

"""`sam2-3dmed phantom`: a synthetic CT or MR dataset."""

from __future__ import annotations

from dataclasses import dataclass

from sam2_3dmed_jax.commands.command_line import Parser
from sam2_3dmed_jax.errors import UserError

HELP = "write a synthetic CT or MR dataset in MSD layout"


@dataclass(frozen=True)
class Options:
    """The arguments of `phantom`."""

    out: str
    cases: int
    seed: int
    task: str
    modality: str
    slices: int | None


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument("--cases", type=int, default=40, help="number of cases")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the anatomies")
    parser.add_argument(
        "--task",
        choices=("spleen", "pancreas", "lung", "organs"),
        default="spleen",
        help="which organs are labelled",
    )
    parser.add_argument(
        "--modality", choices=("ct", "mr"), default="ct", help="mr: T1-weighted, with an arbitrary scale per case"
    )
    parser.add_argument(
        "--slices", type=int, metavar="N", help="slices per case, of the same range of the body (default: 36 to 56)"
    )


def run(options: Options) -> None:
    """Write the dataset."""
    from sam2_3dmed_jax.phantom import write_phantom_dataset
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

    if options.cases < 1:
        raise UserError(f"--cases: {options.cases} is not a number of cases; give 1 or more")
    if options.slices is not None and options.slices < 2:
        raise UserError(f"--slices: {options.slices} is not a number of slices; give 2 or more")
    with ConsoleProgress() as progress:
        write_phantom_dataset(
            options.out,
            options.cases,
            options.seed,
            options.task,
            progress,
            modality=options.modality.upper(),
            slices=options.slices,
        )
    print(f"{options.cases} phantoms in {options.out}")

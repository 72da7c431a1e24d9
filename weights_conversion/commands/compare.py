"""The command `compare`: the differences between two checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from sam2_3dmed_jax.commands.command_line import CheckpointName, Parser
from sam2_3dmed_jax.errors import UserError

HELP = "compare two checkpoints in any layouts tensor by tensor; the exit code is 2 when they differ"


@dataclass(frozen=True)
class Options:
    """The arguments of `compare`."""

    a: str
    b: str
    atol: float


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument("a", type=CheckpointName, metavar="A", help="checkpoint in any layout, or a name of `download`")
    parser.add_argument("b", type=CheckpointName, metavar="B", help="checkpoint in any layout, or a name of `download`")
    parser.add_argument(
        "--atol", type=float, default=0.0, metavar="X", help="largest absolute difference that counts as equal"
    )


def run(options: Options) -> None:
    """Print the differences, and raise an error when there are any."""
    from sam2_3dmed_jax.hub.resolve import checkpoint_folder
    from sam2_3dmed_jax.runtime.progress import progress_of_long_work
    from weights_conversion.compare import compare_checkpoints

    if not options.atol >= 0:  # NaN, too
        raise UserError(f"--atol: {options.atol:g} is not a tolerance; give 0 or more")
    a, b = checkpoint_folder(options.a), checkpoint_folder(options.b)
    with progress_of_long_work() as progress:
        comparison = compare_checkpoints(a, b, options.atol, progress)
    if comparison.equal:
        within = f" within {options.atol:g}" if options.atol else ""
        print(f"equal: {comparison.compared} tensors{within}")
        return
    print("\n".join(comparison.lines()))
    raise UserError(
        f"{options.a} and {options.b} differ: {len(comparison.different)} of {comparison.compared} tensors in value, "
        f"{len(comparison.shapes)} in shape, {len(comparison.only_a)} only in A, {len(comparison.only_b)} only in B"
    )

"""`sam2-3dmed download`: published weights by name, ready for all commands, also without a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam2_3dmed_jax.commands.command_line import CheckpointName, Parser
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.hub.catalog import CATALOG, find_weights
from sam2_3dmed_jax.hub.resolve import fetch_weights, is_ready

HELP = "download official SAM 2 or MedSAM2 weights by name; without NAME, list the names"


@dataclass(frozen=True)
class Options:
    """The arguments of `download`. None: not given."""

    name: str | None
    from_file: str | None


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument(
        "name",
        type=CheckpointName,
        metavar="NAME",
        nargs="?",
        help=f"{', '.join(weights.name for weights in CATALOG)}, or hf://owner/repository[@revision][/file]",
    )
    parser.add_argument("--from-file", metavar="FILE", help="a file of these weights, in place of the network")


def run(options: Options) -> None:
    """Download and convert weights, or list their names."""
    if options.name is None:
        if options.from_file:
            raise UserError("--from-file: NAME is missing; give the name of the weights in the file")
        print("\n".join(_list()))
        return
    weights = find_weights(options.name)
    if weights is None:
        raise UserError(
            f"{options.name} is not the name of published weights; 'sam2-3dmed download' lists them, and other "
            "repositories of Hugging Face are hf://owner/repository"
        )
    folder = fetch_weights(weights, Path(options.from_file) if options.from_file else None)
    print(f"{weights.name} is ready in {folder}")


def _list() -> list[str]:
    """Return one line per entry of the table."""
    width = max(len(weights.name) for weights in CATALOG)
    state = {True: "ready         ", False: "not downloaded"}
    return [
        f"{weights.name:{width}}  {state[is_ready(weights)]}  hf://{weights.repository}  {weights.licence}"
        for weights in CATALOG
    ]

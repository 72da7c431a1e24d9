"""The command `inspect`: the contents of a checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from sam2_3dmed_jax.commands.command_line import CheckpointName, Parser

HELP = "show the contents of a checkpoint: preset, tensors, parameters by part, provenance"


@dataclass(frozen=True)
class Options:
    """The arguments of `inspect`."""

    checkpoint: str
    json: bool


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument(
        "checkpoint", type=CheckpointName, metavar="CKPT", help="checkpoint in any layout, or a name of `download`"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Options) -> None:
    """Print the description."""
    from sam2_3dmed_jax.hub.resolve import checkpoint_folder
    from weights_conversion.inspect import as_text, describe_checkpoint

    description = describe_checkpoint(checkpoint_folder(options.checkpoint))
    print(json.dumps(asdict(description), indent=2) if options.json else as_text(description))

"""The command `convert`: a checkpoint of SAM 2 or MedSAM2 in another layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam2_3dmed_jax.commands.command_line import CheckpointName, Parser

HELP = "convert a checkpoint of SAM 2 or MedSAM2 between layouts, strictly"


@dataclass(frozen=True)
class Options:
    """The arguments of `convert`."""

    source: str
    destination: str
    model: str | None
    image_size: int | None
    to: str | None
    drop_extra: bool
    adapters: str | None


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument(
        "source",
        type=CheckpointName,
        metavar="SRC",
        help=".pt, .safetensors, transformers or native folder, or a name of `download`",
    )
    parser.add_argument("destination", metavar="DST", help="folder, or a name that ends in .safetensors or .pt")
    parser.add_argument("--model", metavar="NAME", help="preset that SRC must fit (default: recognised)")
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="image size to store, in pixels; 512 for MedSAM2 (default: as in SRC)",
    )
    parser.add_argument(
        "--to",
        choices=("native", "meta", "transformers"),
        help="layout to write (default: native, or meta for .pt)",
    )
    parser.add_argument("--drop-extra", action="store_true", help="leave out the parameters of SRPP and BD")
    parser.add_argument(
        "--adapters",
        metavar="FILE",
        help="adapters of a run with LoRA to merge into SRC, RUN/adapters/final.safetensors",
    )


def run(options: Options) -> None:
    """Convert the checkpoint and print what was written."""
    from sam2_3dmed_jax.hub.resolve import checkpoint_folder
    from sam2_3dmed_jax.runtime.progress import progress_of_long_work
    from weights_conversion.convert import convert_checkpoint

    source = checkpoint_folder(options.source)
    with progress_of_long_work() as progress:
        result = convert_checkpoint(
            source,
            Path(options.destination),
            preset=options.model,
            image_size=options.image_size,
            to=options.to,
            drop_extra=options.drop_extra,
            adapters=Path(options.adapters) if options.adapters else None,
            progress=progress,
        )
    print(
        f"{result.preset}: {result.tensors} tensors from {result.source_layout} to {result.target.layout} layout "
        f"in {options.destination}"
    )
    if result.reading and result.reading != {"prefix": "model."}:  # Meta's own files have this prefix
        print("; ".join(f"{what.replace('_', ' ')}: {text}" for what, text in result.reading.items()))

"""The verbs convert, inspect and compare, for `sam2-3dmed` and for `python -m weights_conversion`.

Argument definitions stand here once; heavy imports happen inside, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sam2_3dmed_jax.errors import UserError

QUIET = 2.0  # seconds: shorter work shows no progress

Verb = Callable[[argparse.Namespace, Sequence[str]], None]


def add_verbs(verb: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Define the arguments; `verb` makes the parser of a name and a text."""
    p = verb("convert", "convert a checkpoint of SAM 2 or MedSAM2 between layouts, strictly")
    p.add_argument("source", metavar="SRC", help=".pt, .safetensors, transformers folder or native folder")
    p.add_argument("destination", metavar="DST", help="folder, or a name that ends in .safetensors or .pt")
    p.add_argument("--model", metavar="NAME", help="preset to hold SRC to; recognised unless given")
    p.add_argument(
        "--image-size", type=int, metavar="N", help="S in pixels to store, 512 for MedSAM2; SRC's own unless given"
    )
    p.add_argument(
        "--to", choices=("native", "meta", "transformers"), help="layout to write; native unless given, meta for .pt"
    )
    p.add_argument("--drop-extra", action="store_true", help="leave out the parameters of SRPP and BD")

    p = verb("inspect", "what is in a checkpoint: preset, tensors, parameters by part, provenance")
    p.add_argument("checkpoint", metavar="CKPT", help="checkpoint of any layout")
    p.add_argument("--json", action="store_true", help="for scripts")

    p = verb("compare", "compare two checkpoints of any layouts tensor by tensor; exit code 2 when they differ")
    p.add_argument("a", metavar="A", help="checkpoint of any layout")
    p.add_argument("b", metavar="B", help="checkpoint of any layout")
    p.add_argument("--atol", type=float, default=0.0, metavar="X", help="largest absolute difference that is equal")


def convert(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Convert a checkpoint."""
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress
    from weights_conversion import convert as conversion

    with ConsoleProgress() as progress:
        done = conversion.convert(
            Path(options.source),
            Path(options.destination),
            preset=options.model,
            image_size=options.image_size,
            to=options.to,
            drop_extra=options.drop_extra,
            progress=_when_long(progress),
        )
    print(
        f"{done.preset}: {done.tensors} tensors from {done.source_layout} to {done.target.layout} layout "
        f"in {options.destination}"
    )


def inspect(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Describe a checkpoint."""
    from weights_conversion.inspect import as_text, describe

    found = describe(Path(options.checkpoint))
    print(json.dumps(found, indent=2) if options.json else as_text(found))


def compare(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Compare two checkpoints."""
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress
    from weights_conversion import compare as comparison

    if not options.atol >= 0:
        raise UserError(f"--atol: {options.atol:g} is no tolerance; give 0 or more")
    with ConsoleProgress() as progress:
        found = comparison.compare(Path(options.a), Path(options.b), options.atol, _when_long(progress))
    if found.equal:
        print(f"equal: {found.compared} tensors" + (f" within {options.atol:g}" if options.atol else ""))
        return
    print("\n".join(found.lines()))
    raise UserError(
        f"{options.a} and {options.b} differ: {len(found.different)} of {found.compared} tensors in value, "
        f"{len(found.shapes)} in shape, {len(found.only_a)} only in A, {len(found.only_b)} only in B"
    )


VERBS: dict[str, Verb] = {"convert": convert, "inspect": inspect, "compare": compare}


def _when_long(progress: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """The same progress, silent for work that is over at once."""
    starts: dict[str, float] = {}

    def report(what: str, done: int, total: int) -> None:
        if time.monotonic() - starts.setdefault(what, time.monotonic()) > QUIET:
            progress(what, done, total)

    return report

"""The command `sam2-3dmed`: the table of its verbs, one module each."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import sam2_3dmed_jax
from sam2_3dmed_jax.commands import (
    demo,
    doctor,
    download,
    evaluate,
    experiments,
    export,
    phantom,
    plan,
    predict,
    prepare,
    serve,
    sweep,
    train,
)
from sam2_3dmed_jax.commands.command_line import Parser, Verb, add_verbs, run_verb
from sam2_3dmed_jax.runtime import distributed
from weights_conversion.commands import compare, convert, inspect

VERBS: dict[str, Verb] = {
    "demo": demo,
    "download": download,
    "convert": convert,
    "inspect": inspect,
    "compare": compare,
    "phantom": phantom,
    "prepare": prepare,
    "experiments": experiments,
    "train": train,
    "predict": predict,
    "serve": serve,
    "evaluate": evaluate,
    "sweep": sweep,
    "export": export,
    "plan": plan,
    "doctor": doctor,
}


def parser() -> Parser:
    """Return the parser of all verbs."""
    parser = Parser(prog="sam2-3dmed", description="SAM2-3dMed in JAX. For research use only.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {sam2_3dmed_jax.__version__}")
    add_verbs(parser, VERBS)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        words: the arguments; None: the arguments of the process.
    """
    code = run_verb(parser(), VERBS, words, "run the same command again to resume where possible")
    distributed.shutdown(code)
    return code


if __name__ == "__main__":
    sys.exit(main())

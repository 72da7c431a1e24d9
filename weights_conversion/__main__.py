"""`python -m weights_conversion convert|inspect|compare`, with the arguments and exit codes of `sam2-3dmed`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sam2_3dmed_jax.commands.command_line import Parser, Verb, add_verbs, run_verb
from weights_conversion.commands import compare, convert, inspect

VERBS: dict[str, Verb] = {"convert": convert, "inspect": inspect, "compare": compare}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        words: the arguments; None: the arguments of the process.
    """
    parser = Parser(prog="python -m weights_conversion", description="Checkpoints of SAM 2. For research use only.")
    add_verbs(parser, VERBS)
    return run_verb(parser, VERBS, words, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())

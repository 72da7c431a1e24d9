"""`python -m weights_conversion convert|inspect|compare`, with the words and exit codes of `sam2-3dmed`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sam2_3dmed_jax.commands.command_line import Parser, exit_code
from weights_conversion.commands import VERBS, add_verbs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = Parser(prog="python -m weights_conversion", description="Checkpoints of SAM 2. For research use only.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        p = verbs.add_parser(name, help=text, description=text)
        p.add_argument("--debug", action="store_true", help="print the traceback of an error")
        return p

    add_verbs(verb)
    options = parser.parse_args(arguments)
    return exit_code(lambda: VERBS[options.verb](options, ()), options.debug, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())

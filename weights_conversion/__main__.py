"""`python -m weights_conversion convert|inspect|compare`, with the words and exit codes of `sam2-3dmed`."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from sam2_3dmed_jax.errors import UserError
from weights_conversion.commands import VERBS, add_verbs


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        print(f"error: {message} (see '{self.prog} --help')", file=sys.stderr)
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0, or 2 for a user's mistake, 1 for a bug, 130 when interrupted."""
    parser = Parser(prog="python -m weights_conversion", description="Checkpoints of SAM 2. For research use only.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        p = verbs.add_parser(name, help=text, description=text)
        p.add_argument("--debug", action="store_true", help="print the traceback of an error")
        return p

    add_verbs(verb)
    options = parser.parse_args(arguments)
    try:
        VERBS[options.verb](options, ())
    except UserError as error:
        if options.debug:
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        print(f"a bug: {type(error).__name__}: {error} (run again with --debug and report it)", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

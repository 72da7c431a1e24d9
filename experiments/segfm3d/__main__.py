"""The CVPR 2025 SEGFM3D challenge: `python -m experiments.segfm3d predict|evaluate`. See docs/how-to/segfm3d.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.segfm3d import evaluate, predict
from sam2_3dmed_jax.commands.command_line import Parser, Verb, add_verbs, run_verb

VERBS: dict[str, Verb] = {"predict": predict, "evaluate": evaluate}


def main(words: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = Parser(prog="segfm3d", description="SAM2-3dMed in the CVPR 2025 SEGFM3D challenge. For research use only.")
    add_verbs(parser, VERBS)
    return run_verb(parser, VERBS, words, "run the same command again")


if __name__ == "__main__":
    sys.exit(main())

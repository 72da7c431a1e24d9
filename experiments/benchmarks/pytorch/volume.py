"""Segmentation of a volume from clicks on its middle slice, in both directions: encoding, prompts and propagation.

    python -m experiments.benchmarks.pytorch.volume [--slices 24] [--objects 1] [--size 512] [--reference transformers]

The references keep the features of all slices, so that they also encode each slice once.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from experiments.benchmarks.pytorch.references import build, load, precision
from experiments.benchmarks.pytorch.side_by_side import SEED, Side, Work, main
from tests.parity import compare, generated
from tests.parity.scenarios import Ask, Scenario, Tracked

LIMITS = {(24, 1): {"float32": 0.55, "bfloat16": 0.7}, (12, 8): {"float32": 0.4, "bfloat16": 0.4}}


def scenario(options: argparse.Namespace) -> Scenario:
    """Return one click per object."""
    places = np.random.default_rng(SEED).uniform(0.25, 0.75, (options.objects, 2)).tolist()
    return (tuple(Ask(k + 1, options.slices // 2, ((x, y, 1),)) for k, (x, y) in enumerate(places)),)


def theirs(options: argparse.Namespace, folder: Path) -> Side:
    from tests.parity import hf, meta

    model = build(options, folder, options.size)
    slices = generated.slices(options.slices, options.size, SEED)
    library = meta if options.reference == "meta" else hf

    def propagate() -> Tracked:
        return library.Video(model, slices).track(scenario(options))

    def run() -> Tracked:
        with precision(options):
            return propagate()

    return Side(run, result=lambda found: (found, found if options.dtype == "float32" else propagate()))


def ours(options: argparse.Namespace, folder: Path) -> Side:
    from tests.parity.ours import Video

    model = load(options, folder, options.size)
    slices = generated.slices(options.slices, options.size, SEED)
    return Side(lambda: Video(model, slices).track(scenario(options)))


def check(found: Tracked, reference: tuple[Tracked, Tracked], options: argparse.Namespace) -> str:
    """Compare with the tolerances of the parity tests; in bfloat16, the signs of logits with the reference in float32.

    Autocast is not a valid reference: its own rounding may select the other one of two similar candidate masks.
    """
    rounded, exact = reference
    agreement = compare.agreement(found, exact)
    if options.dtype == "float32":
        assert agreement.error <= compare.LOGITS and agreement.score_error <= compare.SCORES, agreement
        assert agreement.same_sign >= compare.SAME_SIGN, agreement
        return str(agreement)
    assert agreement.same_sign >= compare.SAME_SIGN_BFLOAT16, agreement
    own = compare.agreement(rounded, exact).same_sign
    signs = f"{100 * agreement.same_sign:.2f} %; the reference's own are {100 * own:.2f} %"
    return f"same sign as the reference in float32: {signs}"


def name(options: argparse.Namespace) -> str:
    return f"{options.slices} slices, {options.objects} object(s), {options.size} px"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="S, pixels; default: %(default)s")
    parser.add_argument("--slices", type=int, default=24, help="D; default: %(default)s")
    parser.add_argument("--objects", type=int, default=1, help="default: %(default)s")
    known = parser.parse_known_args()[0]
    limits = LIMITS.get((known.slices, known.objects), {}) if known.size == 512 else {}
    sys.exit(main(Work(name, limits, ours, theirs, check), parser))

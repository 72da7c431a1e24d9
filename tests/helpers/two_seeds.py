"""A programme of four small runs: two seeds of one variant, region growing, and a method whose files are missing.

`python -m tests.helpers.two_seeds COHORTS OUT...` does all runs in each folder, one folder after the other.
"""

import sys
from dataclasses import replace
from pathlib import Path

from experiments.paper import phantom, runner
from experiments.paper.programme import Programme
from experiments.paper.variants import ONE_CLICK, OtherMethod

SIZE = phantom.Size(
    cases=4,
    folds=2,
    steps=4,
    seeds=2,
    few=1,
    slices=2,
    clips=(2,),
    image_size=64,
    matrix=48,
    batch_size=2,
    tasks=("spleen",),
)


def programme(cohorts: Path) -> Programme:
    """Return the programme; its data and initial checkpoint exist already."""
    whole = phantom.programme(cohorts, SIZE)
    of = {variant.name: variant for variant in whole.variants}
    trained = replace(of["neither"], scorings=(ONE_CLICK,))
    grown = replace(of["region-growing"], against="neither")
    others = (OtherMethod("Lost", "nowhere/{task}", "unknown"),)
    return replace(whole, variants=(trained, grown), others=others, before=lambda progress: None)


if __name__ == "__main__":
    cohorts, *folders = sys.argv[1:]
    sys.exit(max(runner.run(lambda: programme(Path(cohorts)), runner.Options(out)) for out in folders))

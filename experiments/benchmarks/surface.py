"""Time of all four surface metrics: ours, surface-distance and MONAI on the same masks of 512 x 512 x 100 voxels.

    python experiments/benchmarks/surface.py [--repeat 5] [--only spleen]

The script runs the installed ones of the two packages (`pip install surface-distance==0.1`; MONAI needs torch). The
masks are an organ like the spleen, three classes of one case, and the organ with a distant false positive of a few
voxels. All results are compared with ours before any time is printed. Our first call includes compilation. Prints a
Markdown table of the best of several runs.
"""

import argparse
import importlib.util
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from sam2_3dmed_jax.evaluation import surface_metrics
from tests.helpers.surface_cases import PACKAGE_METRICS, Case

SHAPE, SPACING, TOLERANCE = (100, 512, 512), (2.5, 0.79, 0.79), 3.0
PACKAGES = {"surface-distance": ("surface_distance",), "monai": ("monai", "torch")}
Metrics = dict[str, float]


def organ(centre: tuple[int, int, int], radii: tuple[int, int, int]) -> np.ndarray:
    """Return an ellipsoid with a bumpy surface, bool `[D, H, W]`."""
    z, y, x = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    at = sum(((c - m) / r) ** 2 for c, m, r in zip((z, y, x), centre, radii, strict=True))
    return np.asarray(at + 0.25 * np.sin(y / 9) * np.sin(x / 7) * np.sin(z / 3) < 1)


def make_cases() -> dict[str, list[Case]]:
    """Return the pairs of masks of all classes, by name."""
    spleen = organ((51, 303, 349), (18, 58, 46)), organ((50, 300, 350), (18, 60, 45))
    liver = organ((55, 230, 170), (34, 105, 96)), organ((54, 233, 172), (35, 102, 95))
    kidney = organ((40, 330, 320), (22, 32, 30)), organ((40, 332, 318), (21, 33, 30))
    speck = spleen[0].copy()
    speck[8:10, 60:62, 70:72] = True
    pairs = {"spleen": [spleen], "3 classes": [spleen, liver, kidney], "spleen and a speck": [(speck, spleen[1])]}
    return {name: [Case(*pair, SPACING, TOLERANCE) for pair in masks] for name, masks in pairs.items()}


def timed(ask: Callable[[Case], Metrics], cases: list[Case], repeat: int) -> tuple[list[Metrics], float, float]:
    """Return the metrics, the seconds of the first run, and the seconds of the best other run."""
    seconds = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        found = [ask(case) for case in cases]
        seconds.append(time.perf_counter() - start)
    return found, seconds[0], min(seconds[1:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="runs after the first; default: %(default)s")
    parser.add_argument("--only", help="one of the cases")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    installed = [name for name, modules in PACKAGES.items() if all(map(importlib.util.find_spec, modules))]
    print(f"{os.cpu_count()} cores, {platform.machine()}; absent: {sorted(set(PACKAGES) - set(installed)) or 'none'}\n")
    print("| case | definition | ours, first call, s | ours, s | the package, s | ours / package |\n|" + "---|" * 6)
    for name, cases in make_cases().items():
        if options.only not in (None, name):
            continue
        for definition in PACKAGES:
            found, first, ours = timed(lambda case, how=definition: surface_metrics(*case, how), cases, options.repeat)  # type: ignore[call-arg]
            row = f"| {name} | {definition} | {first:.2f} | {ours:.3f} |"
            if definition in installed:
                expected, _, theirs = timed(PACKAGE_METRICS[definition], cases, 2)
                for ask, answer in zip(found, expected, strict=True):
                    for key in answer:
                        np.testing.assert_allclose(ask[key], answer[key], rtol=1e-5, err_msg=f"{name}, {key}")
                row += f" {theirs:.2f} | {ours / theirs:.3f} |"
            print(row if definition in installed else f"{row} | |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

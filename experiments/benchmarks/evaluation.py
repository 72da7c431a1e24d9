"""Seconds and memory of the scores of many label maps: `evaluate`, and scripts around surface-distance and MONAI.

    python -m experiments.benchmarks.evaluation [--cases 100] [--shape 512 512 160] [--pairs 1]

Each row is a new process (ours: and its workers) that reads predictions and references of spleens from compressed NIfTI
files and computes Dice, NSD, HD95, HD and ASSD of each case. Ours also writes the table and the report. The programs of
ours are in the cache, as from a second run on. The other packages must be installed (`tests/metrics/requirements.txt`).
Their results are compared with ours. Prints a Markdown table.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.errors import number_of

SPACING, TOLERANCE = (0.79, 0.79, 2.5), 3.0  # (di, dj, dk) in mm, mm
DEFINITIONS = ("surface-distance", "monai")
COLUMNS = ("dice", "nsd", "hd95_mm", "hd_mm", "assd_mm")
LIMIT = 0.2  # of the package's time


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 160], help="voxels; default: 512 512 160")
    parser.add_argument("--pairs", type=int, default=1, help="runs of each row, by turns; default: %(default)s")
    parser.add_argument("--package", choices=DEFINITIONS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.package:
        score_by_package(options.package, options.folder)
        return 0
    with tempfile.TemporaryDirectory() as name:
        print("\n".join(measure(options, Path(name))))
    return 0


def measure(options: argparse.Namespace, folder: Path) -> list[str]:
    """Return the lines of the table."""
    make_cases(folder, options.cases, options.shape)
    seconds: dict[str, list[float]] = {}
    peak: dict[str, float] = {}

    def timed(name: str, command: Sequence[str]) -> None:
        start = time.perf_counter()
        peak[name] = max(peak.get(name, 0.0), run_with_peak(command))
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        print(f"{name}: {seconds[name][-1]:.1f} s, {peak[name]:.0f} MiB", file=sys.stderr, flush=True)

    numbers = sorted({1, os.cpu_count() or 1})
    for turn in range(-1, options.pairs):  # the first turn compiles
        for definition in DEFINITIONS:
            for workers in numbers if turn >= 0 else (1,):
                command = [sys.executable, "-m", "sam2_3dmed_jax", "evaluate", "--classes", "1=spleen"]
                command += ["--predictions", str(folder / "predictions"), "--references", str(folder / "references")]
                command += ["--definition", definition, "--tolerance-mm", str(TOLERANCE), "--workers", str(workers)]
                command += ["--out", str(folder / definition)]
                if turn >= 0:
                    timed(f"ours, {definition}, {number_of(workers, 'process', 'processes')}", command)
                else:
                    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if turn >= 0:
                own = [sys.executable, "-m", "experiments.benchmarks.evaluation", "--folder", str(folder)]
                timed(definition, [*own, "--package", definition])
    for definition in DEFINITIONS:
        check_equal(folder, definition)

    lines = ["| work | s | of the package | limit | peak of all processes, MiB |", "|---|---|---|---|---|"]
    for name, found in seconds.items():
        ratio = statistics.median(found) / statistics.median(seconds[next(d for d in DEFINITIONS if d in name)])
        limit = LIMIT if name.startswith("ours") and "surface-distance" in name else ""
        lines.append(f"| {name} | {statistics.median(found):.0f} | {ratio:.2f} | {limit} | {peak[name]:.0f} |")
    return lines


def make_cases(folder: Path, cases: int, shape: Sequence[int]) -> None:
    """Write predictions and references: ellipsoids with bumps, as large as spleens, in different places."""
    import nibabel

    i, j, k = np.ogrid[tuple(slice(0, n) for n in shape)]
    bumps = 0.25 * np.sin(i / 9) * np.sin(j / 7) * np.sin(k / 3)
    rng = np.random.default_rng(0)
    for number in range(cases):
        center = np.array(shape) * rng.uniform(0.35, 0.65, 3)
        radii = np.array((46, 58, 18)) * rng.uniform(0.8, 1.2, 3)
        for name in ("references", "predictions"):
            (folder / name).mkdir(exist_ok=True)
            # Users' predictions are a few voxels off.
            place, size = center + (name == "predictions") * rng.uniform(-2, 2, 3), radii * rng.uniform(0.97, 1.03, 3)
            distance = sum(((axis - c) / r) ** 2 for axis, c, r in zip((i, j, k), place, size, strict=True))
            labels = np.asarray(distance + bumps < 1).astype(np.uint8)
            image = nibabel.Nifti1Image(labels, np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1]))
            nibabel.save(image, folder / name / f"case{number:03}.nii.gz")


def run_with_peak(command: Sequence[str]) -> float:
    """Run a command, and return the largest sum of the memory of its processes, in MiB, sampled each 50 ms."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    found, ended = [0.0], threading.Event()

    def sample() -> None:
        while not ended.wait(0.05):
            found.append(resident(process.pid))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        if process.wait():
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    finally:
        ended.set()
        thread.join()
    return max(found)


def resident(pid: int) -> float:
    """Return the resident memory of a process and its children, in MiB."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _children(task)]
    except (OSError, IndexError):  # it has ended
        return 0.0
    return pages * resource.getpagesize() / 2**20 + sum(map(resident, children))


def _children(task: Path) -> list[str]:
    return (task / "children").read_text().split()


def score_by_package(definition: str, folder: Path) -> None:
    """Score all cases by a package, and write its metrics."""
    import nibabel

    from tests.helpers.surface_cases import PACKAGE_METRICS, Case

    found = {}
    for file in sorted((folder / "references").iterdir()):
        # (k, j, i), as ours reads files.
        one, other = (
            np.asarray(nibabel.load(folder / name / file.name).dataobj).T == 1 for name in ("predictions", "references")
        )
        metrics = PACKAGE_METRICS[definition](Case(one, other, SPACING[::-1], TOLERANCE))
        metrics["dice"] = float(2 * (one & other).sum() / (one.sum() + other.sum()))
        found[file.name.removesuffix(".nii.gz")] = metrics
    (folder / f"{definition}.json").write_text(json.dumps(found))


def check_equal(folder: Path, definition: str) -> None:
    """Check that the table of ours has the metrics of a package."""
    theirs = json.loads((folder / f"{definition}.json").read_text())
    with (folder / definition / "cases.csv").open() as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert rows.keys() == theirs.keys()
    for case, metrics in theirs.items():
        for name in COLUMNS:
            np.testing.assert_allclose(float(rows[case][name]), metrics[name], rtol=1e-4, err_msg=f"{case}, {name}")


if __name__ == "__main__":
    sys.exit(main())

"""Speed on a GPU, after the checks: encoder, memory attention, volumes, corrections, training, and Meta's `sam2`.

    python -m experiments.benchmarks.gpu.benchmark --out gpu.json             # on an NVIDIA GPU, under 20 minutes
    python -m experiments.benchmarks.gpu.benchmark --out smoke.json --smoke   # on any machine: each line, on toy sizes

Nothing is downloaded; weights are random. What `check` finds wrong is not timed. The same command resumes: measured
entries are kept, and those that failed or did not fit the budget are tried again, failed ones last. Writes a table and
a plot next to the file.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.gpu import check, report
from experiments.benchmarks.gpu.results import FAILED, LEFT_OUT, REFUSED, Entry, Results, has_figures
from experiments.benchmarks.gpu.sections import CHECK_BUDGET, SECTIONS, Run, Timing
from sam2_3dmed_jax.runtime import compilation_cache


def run_checks(results: Results, run: Run) -> None:
    """Run the checks that are not known to be right, within their budget."""
    start = time.perf_counter()
    known = {name for name, outcome in results.checks.items() if outcome.is_right}
    for one in check.all_checks(run.folder, run.smoke):
        if one.name not in known and (run.smoke or time.perf_counter() - start < CHECK_BUDGET):
            outcome = check.run_check(one)
            results.add_check(one.name, outcome)
            print(check.line(one.name, outcome), flush=True)


def obstacle(timing: Timing, results: Results) -> str:
    """Return why an entry is not timed: a check that it needs is wrong, or was not run; "" if nothing is against it."""
    for need in timing.needs:
        outcomes = {name: outcome for name, outcome in results.checks.items() if name.startswith(need)}
        if not outcomes:
            return f"no check of '{need}' was run"
        if wrong := [name for name, outcome in outcomes.items() if not outcome.is_right]:
            return f"wrong: {wrong[0]}"
    return ""


def measure(timing: Timing, results: Results) -> Entry:
    """Return an entry, with figures or with the reason why it has none."""
    if reason := obstacle(timing, results):
        return {REFUSED: reason}
    try:
        return timing.measure()
    except Exception as error:  # one entry that fails must not hide the others
        return {FAILED: f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def run_section(name: str, results: Results, run: Run) -> None:
    """Measure the entries of a section that have no figures, within its budget."""
    section, start = SECTIONS[name], time.perf_counter()
    missing = [timing for timing in section.timings(run) if not has_figures(results.entry(name, timing.name))]
    # An entry that fails may take the GPU's context with it, and then all that follow fail, too.
    missing.sort(key=lambda timing: FAILED in (results.entry(name, timing.name) or {}))
    for timing in missing:
        spent = time.perf_counter() - start
        late = not run.smoke and spent > section.budget
        entry = {LEFT_OUT: f"after {spent:.0f} s"} if late else measure(timing, results)
        results.add(name, timing.name, entry)
        print(f"{name:18s} {timing.name}: {report.figures(entry)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks and the sections, and write the table and the plot; exit with 1 if a check is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="FILE.json", help="results; also FILE.md and FILE.png")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, on any machine")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    options = parser.parse_args(arguments)
    # PyTorch, in another process, needs the memory that JAX would reserve. JAX reads this when its devices start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    compilation_cache.enable()
    if options.smoke:
        check.compile_quickly()
    out = Path(options.out)
    results = Results(out, options.smoke)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(options.smoke, Path(folder))
        run_checks(results, run)
        for name in options.sections:
            run_section(name, results, run)
    report.write(results.record, out)
    print(f"{out}, {out.with_suffix('.md')} and {out.with_suffix('.png')}")
    if names := check.wrong(results.checks):
        print(f"{len(names)} of {len(results.checks)} checks are wrong:", *names, sep="\n")
    return int(bool(names))


if __name__ == "__main__":
    sys.exit(main())

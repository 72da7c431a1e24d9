"""Table and plot of the figures that the scripts of this folder wrote with --json.

python -m experiments.benchmarks.pytorch.combine FIGURES.json [...] --out experiments/benchmarks/results
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.pytorch import memory_growth, rows, where

NOTES = "notes.md"  # written by hand: where the time goes and what was tried


def draw(figures: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw ratios as bars, with the spread of all pairs and the limits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.6 + 0.42 * len(figures)), layout="constrained")
    for place, row in enumerate(figures):
        reference = statistics.median(row["theirs_seconds"])
        value = rows.ratio(row)
        low, high = (extreme(row["ours_seconds"]) / reference for extreme in (min, max))
        axes.barh(place, value, color="#4477aa" if row["dtype"] == "float32" else "#99bbdd", height=0.6)
        axes.plot([low, high], [place, place], color="black", linewidth=1)
        axes.text(0.01, place, f"{value:.2f}", va="center", color="white")
        if row["limit"]:
            axes.plot([row["limit"]] * 2, [place - 0.4, place + 0.4], color="#cc3311", linewidth=2)
    axes.axvline(1, color="gray", linestyle=":")
    axes.set_yticks(range(len(figures)), [f"{row['work']}, {row['dtype']}, {row['reference']}" for row in figures])
    axes.invert_yaxis()
    axes.set_xlabel("ours / reference (line: all of ours; red: limit)")
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write `pytorch.md` and `pytorch.png`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FIGURES.json")
    parser.add_argument("--out", required=True, help="folder of the result; its notes.md is appended to the table")
    options = parser.parse_args(arguments)
    figures = [json.loads(Path(name).read_text()) for name in options.files]
    times = [row for row in figures if row.get("kind") != "memory"]
    grown = [row for row in figures if row.get("kind") == "memory"]
    out = Path(options.out)
    text = ["# Ours and PyTorch, side by side", "", "Written by `experiments.benchmarks.pytorch.combine`.", ""]
    if times:
        draw(times, out / "pytorch.png")
        text += [rows.table(times), "", "![ratios](pytorch.png)", ""]
    if traced := [row for row in times if "ours_where" in row]:
        text += ["## Where the time of one call goes, by the profilers", "", where.table(traced), ""]
    if grown:
        text += ["## Peak memory by slices", "", memory_growth.table(grown), ""]
    if (out / NOTES).exists():
        text += [(out / NOTES).read_text()]
    (out / "pytorch.md").write_text("\n".join(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())

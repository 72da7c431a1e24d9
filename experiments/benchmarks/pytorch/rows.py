"""Rows of the benchmark tables: medians, spreads, ratios, shares of a matrix product's speed, and the machine."""

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any


def machine() -> dict[str, str]:
    """Return the facts that the figures depend on."""
    with open("/proc/cpuinfo") as file:
        names = {line.split(":")[1].strip() for line in file if line.startswith("model name")}
    root = Path(__file__).parent
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    packages = ("jax", "flax", "torch", "transformers", "sam2")
    versions = {name: version for name in packages if (version := _version(name))}
    return {
        "CPU": f"{', '.join(sorted(names))}, {os.cpu_count()} cores",
        "Python": platform.python_version(),
        **versions,
        "commit": commit,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _version(package: str) -> str:
    """Return the version of a package, or "" if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def spread(values: Sequence[float]) -> str:
    """Return the median, minimum and maximum as text."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def ratio(row: dict[str, Any]) -> float:
    """Return the median of ours divided by the median of the reference."""
    return statistics.median(row["ours_seconds"]) / statistics.median(row["theirs_seconds"])


HEADER = (
    "work",
    "dtype",
    "reference",
    "ours, s",
    "reference, s",
    "ratio",
    "limit",
    "peak MiB, ours",
    "reference",
    "first call, s",
    "GFLOP, ours",
    "reference",
    "of a matmul's FLOP/s, ours",
    "reference",
    "agreement",
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as Markdown, followed by the facts of the machine."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    for row in rows:
        cells = [row["work"], row["dtype"], row["reference"]]
        cells += [spread(row["ours_seconds"]), spread(row["theirs_seconds"]), f"{ratio(row):.2f}"]
        cells += [f"{row['limit']}" if row["limit"] else ""]
        cells += [f"{row[f'{side}_peak_mib']:.0f}" if f"{side}_peak_mib" in row else "" for side in ("ours", "theirs")]
        cells += [f"{row['first_call_seconds']:.1f}"]
        flops = {side: row[f"{side}_flops"] for side in ("ours", "theirs")}
        cells += [f"{count / 1e9:.0f}" if count else "" for count in flops.values()]
        for side, count in flops.items():
            rate = (count or 0) / statistics.median(row[f"{side}_seconds"])
            cells.append(f"{rate / row['matmul_flops_per_second']:.0%}" if count else "")
        lines.append("| " + " | ".join([*cells, row["agreement"]]) + " |")
    facts = []
    for row in rows:
        described = ", ".join(f"{name} {value}" for name, value in row["machine"].items())
        if described not in facts:
            facts.append(described)
    return "\n".join([*lines, "", *facts])

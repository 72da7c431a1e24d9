"""Table (Markdown) and plot of the results of a GPU benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks.gpu.results import Entry, has_figures
from experiments.benchmarks.gpu.sections import SECTIONS

# Frames/s of Meta's compiled video predictor on an A100, 1024 px (README of facebookresearch/sam2).
PUBLISHED = {
    "sam2.1_hiera_tiny": 91.2,
    "sam2.1_hiera_small": 84.8,
    "sam2.1_hiera_base_plus": 64.1,
    "sam2.1_hiera_large": 39.5,
}


def figures(entry: Entry) -> str:
    """Return an entry in one line."""
    return ", ".join(f"{name} {_number(value)}" for name, value in entry.items())


def _number(value: Any) -> str:
    return (
        f"{value:.3g}" if isinstance(value, float) and value < 1000 else f"{value:.0f}" if _is_number(value) else value
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def table(title: str, entries: Mapping[str, Entry]) -> list[str]:
    """Return the lines of a section; entries without figures are listed below the table."""
    measured = {name: entry for name, entry in entries.items() if has_figures(entry)}
    columns = list(dict.fromkeys(column for entry in measured.values() for column in entry))
    lines = [f"## {title}", ""]
    if measured:
        lines += ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for name, entry in measured.items():
            cells = [_number(entry[column]) if column in entry else "" for column in columns]
            lines.append("| " + " | ".join([name, *cells]) + " |")
        lines.append("")
    lines += [f"- {name}: {figures(entry)}" for name, entry in entries.items() if name not in measured]
    return [*lines, ""] if len(measured) < len(entries) else lines


def markdown(record: Mapping[str, Any], picture: str) -> str:
    """Return the whole report."""
    checks = record["checks"].values()
    right = sum(outcome["error"] <= outcome["limit"] for outcome in checks)
    lines = ["# Speed on a GPU", "", "Written by `experiments.benchmarks.gpu.benchmark`."]
    if record["smoke"]:
        lines += ["", "**Toy sizes (`--smoke`): these figures say nothing about speed.**"]
    lines += ["", *(f"- {name}: {value}" for name, value in record["machine"].items() if value)]
    lines += [f"- checks: {right} of {len(checks)} right", "", f"![slices per second]({picture})", ""]
    for name, entries in record["sections"].items():
        lines += table(SECTIONS[name].title, entries)
    published = ", ".join(f"{preset} {value}" for preset, value in PUBLISHED.items())
    lines += ["Meta's published figures (A100, compiled, 1024 px, one object), in slices/s: " + published + "."]
    return "\n".join(lines) + "\n"


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Draw slices per second of whole volumes, ours and Meta's, and the published figures as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sections = record["sections"]
    bars = [(name, entry, "#4477aa") for name, entry in sections.get("volume", {}).items()]
    bars += [(f"sam2: {name}", entry, "#ddaa33") for name, entry in sections.get("meta", {}).items()]
    bars = [(name, entry, colour) for name, entry, colour in bars if "slices/s" in entry]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.42 * len(bars)), layout="constrained")
    for place, (name, entry, colour) in enumerate(bars):
        axes.barh(place, entry["slices/s"], color=colour, height=0.6)
        for preset, value in PUBLISHED.items():
            if preset in name and not record["smoke"]:
                axes.plot([value] * 2, [place - 0.4, place + 0.4], color="#cc3311", linewidth=2)
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("slices/s of a volume, encoding and propagation (red: Meta's published figure, A100)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write(record: Mapping[str, Any], file: Path) -> None:
    """Write the report and its picture next to the results."""
    picture = file.with_suffix(".png")
    draw(record, picture)
    file.with_suffix(".md").write_text(markdown(record, picture.name))

"""Results in a line each, for the terminal: with tolerance, unit and counts, which must never be left unsaid."""

from __future__ import annotations

from typing import Any


def class_line(name: str, entry: dict[str, Any]) -> str:
    """A class in one line, with what must never be left unsaid: tolerance, unit, counts."""

    def told(metric: str, digits: int) -> str:
        mean = entry[metric]["mean"]
        return "none" if mean is None else f"{mean:.{digits}f}"

    words = f"{name}: mean Dice {told('dice', 3)} over {entry['dice']['n']} cases"
    if "nsd" in entry:
        words += f", NSD {told('nsd', 3)} at {entry['tolerance_mm']:g} mm, HD95 {told('hd95_mm', 1)} mm"
    empty = entry["empty"]
    counts = [f"{number} with an empty {kind}" for kind, number in empty.items() if number and kind != "both"]
    counts += [f"{empty['both']} with both empty"] if empty["both"] else []
    if "lesions" in entry:
        found = entry["lesions"]
        counts.append(f"{found['found']} of {found['lesions']} lesions found, {found['false_positives']} false")
    return f"{words} ({'; '.join(counts)})" if counts else words


def difference_line(entry: dict[str, Any], other: str) -> str:
    """A paired difference of a class and metric, from `comparison.compare`, in one line."""
    if entry["difference"] is None:
        return f"{entry['class']}: no {entry['metric']} to compare with {other}"
    low, high = entry["ci95"] or (entry["difference"],) * 2
    p = "" if entry["p_holm"] is None else f", p = {entry['p_holm']:.3g} (Wilcoxon, Holm)"
    return (
        f"{entry['class']}: {entry['metric']} {entry['difference']:+.3f} [{low:+.3f}, {high:+.3f}] against {other} "
        f"over {entry['cases']} cases{p}"
    )

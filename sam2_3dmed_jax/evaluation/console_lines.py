"""Results as single lines for the terminal, always with tolerance, unit and counts."""

from __future__ import annotations

from typing import Any

from sam2_3dmed_jax.errors import number_of
from sam2_3dmed_jax.evaluation.comparison import Difference
from sam2_3dmed_jax.metrics import registry
from sam2_3dmed_jax.metrics.statistics import SIGNIFICANT, smallest_wilcoxon_p


def class_line(name: str, entry: dict[str, Any]) -> str:
    """Return the means of a class, with tolerance, unit and counts, in one line.

    Args:
        name: of the class.
        entry: of the class, in `summary.json`.
    """
    means: list[str] = []
    for metric in registry.METRICS:
        if metric.headline and metric.name in entry:
            mean = entry[metric.name]["mean"]
            words = f"{metric.label} {'none' if mean is None else f'{mean:.{metric.digits - 1}f}'}"
            words += f" {metric.unit}" if metric.unit else ""
            words += f" over {number_of(entry[metric.name]['n'], 'case')}" if not means else ""
            words += f" at {entry['tolerance_mm']:g} mm" if metric.tolerant else ""
            means.append(words)
    line = f"{name}: mean {', '.join(means)}"
    empty = entry["empty"]
    counts = [f"{number} with an empty {kind}" for kind, number in empty.items() if number and kind != "both"]
    counts += [f"{empty['both']} with both empty"] if empty["both"] else []
    if "lesions" in entry:
        lesions = entry["lesions"]
        counts.append(f"{lesions['found']} of {lesions['lesions']} lesions found, {lesions['false_positives']} false")
    return f"{line} ({'; '.join(counts)})" if counts else line


def curve_line(name: str, entry: dict[str, Any]) -> str:
    """Return Dice after each interaction, its area, and the clicks to each Dice, in one line.

    Args:
        name: of the class.
        entry: of the class, in `summary.json`, with "interactive".
    """
    found = entry["interactive"]
    means = [one["dice"]["mean"] for one in found["curve"]]
    words = " ".join("none" if mean is None else f"{mean:.3f}" for mean in means)
    area = found["auc"]["dice"]["mean"]
    line = f"{name}: Dice after 0 to {found['interactions']} clicks {words}, area {area:.3f}"
    for dice, clicks in found["clicks_to"].items():
        failed = f" ({clicks['failures']} never)" if clicks["failures"] else ""
        line += f"; {dice} after {clicks['mean']:.1f}{failed}"
    return line


def difference_line(entry: Difference, other: str) -> str:
    """Return a paired difference of a class and metric, from `compare_methods`, in one line."""
    if entry["difference"] is None:
        return f"{entry['class']}: {entry['metric']} cannot be compared with {other}"
    low, high = entry["ci95"] or (entry["difference"],) * 2
    p = "" if entry["p_crossed_holm"] is None else f", p = {entry['p_crossed_holm']:.3g} (over {entry['covers']}, Holm)"
    if entry["primary"] and (least := smallest_wilcoxon_p(entry["cases"])) > SIGNIFICANT:
        p = f", too few to be significant (the exact Wilcoxon test has p >= {least:.2g})"
    return (
        f"{entry['class']}: {entry['metric']} {entry['difference']:+.3f} [{low:+.3f}, {high:+.3f}] against {other} "
        f"over {number_of(entry['cases'], 'case')}{p}"
    )

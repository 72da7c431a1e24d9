"""The table of what a result costs, with how each figure was taken."""

from __future__ import annotations

from typing import Any

from sam2_3dmed_jax.evaluation.report.markup import Cell, Number, table
from sam2_3dmed_jax.evaluation.report.wording import name_of


def cost_tables(summary: dict[str, Any]) -> str:
    """Parameters, FLOPs, seconds and memory."""
    found = summary["cost"]
    if not found:
        return "<p>Unknown: the files do not say what it took to make them.</p>"
    header = ("what", "mean", "SD", "q1", "median", "q3", "n")
    body: list[list[Cell]] = []
    for name, key, digits in (
        ("seconds a volume", "seconds_a_volume", 2),
        ("FLOPs a volume (1e12)", "tflops_a_volume", 4),
    ):
        entry = found[key]
        numbers: list[Cell] = [Number(entry[part], digits) for part in ("mean", "sd", "q1", "median", "q3")]
        body.append([name, *numbers, entry["n"]])
    told = summary["definitions"]
    compiling, timed = found["compiling"], found["seconds_a_volume"]["n"]
    machine = found["machine"] or "a machine that is not told, or several"
    caption = (
        f"Cost of segmenting a volume, all its classes together, on {machine}. Seconds: "
        f"{told['seconds']}, {told['seconds_a_volume']} ({compiling} of {compiling + timed} left out). FLOPs: "
        f"{told['tflops']}. Boundary branch (BD) at inference: {summary['bd'] or 'none'}."
    )
    peaks = [name for name in ("peak_host_mib", "peak_device_mib") if found[name] is not None]
    sizes: list[list[Cell]] = [[name_of(name), Number(found[name], 1)] for name in peaks]
    parameters = found["parameters"]
    if parameters:
        totals = {"parameters": parameters["total"], "of them SRPP": parameters["srpp"], "of them BD": parameters["bd"]}
        sizes += [[name, Number(number, 0)] for name, number in totals.items()]
        sizes += [[f"parameters: {name}", Number(number, 0)] for name, number in parameters["parts"].items()]
    beside = (
        f"Size. Parameters of the model that ran. Host memory: {told['peak_host_mib']}; the largest of all cases. "
        f"Device memory: {told['peak_device_mib']}."
    )
    return table(caption, header, body) + table(beside, ("what", "value"), sizes)

"""Tables of the cost of a result, with the way in which each figure is measured."""

from __future__ import annotations

from typing import Any

from sam2_3dmed_jax.evaluation.report.markup import Cell, Number, table
from sam2_3dmed_jax.evaluation.report.wording import name_of


def cost_tables(summary: dict[str, Any]) -> str:
    """Return the tables of seconds and FLOPs, and of parameters and memory."""
    cost = summary["cost"]
    if not cost:
        return "<p>Unknown: files do not contain the cost of making them.</p>"
    header = ("what", "mean", "SD", "q1", "median", "q3", "n")
    body: list[list[Cell]] = []
    for name, key, digits in (
        ("seconds per volume", "seconds_a_volume", 2),
        ("FLOPs per volume (1e12)", "tflops_a_volume", 4),
    ):
        entry = cost[key]
        numbers: list[Cell] = [Number(entry[part], digits) for part in ("mean", "sd", "q1", "median", "q3")]
        body.append([name, *numbers, entry["n"]])
    definitions = summary["definitions"]
    compiling, timed = cost["compiling"], cost["seconds_a_volume"]["n"]
    machine = cost["machine"] or "an unknown machine, or several machines"
    dtype = f", in {cost['compute_dtype']}" if cost["compute_dtype"] else ""
    caption = (
        f"Cost of segmenting a volume, all its classes together, on {machine}{dtype}. Seconds: "
        f"{definitions['seconds']}, {definitions['seconds_a_volume']} ({compiling} of {compiling + timed} left out). "
        f"FLOPs: {definitions['tflops']}. Boundary branch (BD) at inference: {summary['bd'] or 'none'}."
    )
    peaks = [name for name in ("peak_host_mib", "peak_device_mib") if cost[name] is not None]
    sizes: list[list[Cell]] = [[name_of(name), Number(cost[name], 1)] for name in peaks]
    parameters = cost["parameters"]
    if parameters:
        totals = {"parameters": parameters["total"], "of them SRPP": parameters["srpp"], "of them BD": parameters["bd"]}
        sizes += [[name, Number(number, 0)] for name, number in totals.items()]
        sizes += [[f"parameters: {name}", Number(number, 0)] for name, number in parameters["parts"].items()]
    size_caption = (
        f"Size. Parameters of the model that ran. Host memory: {definitions['peak_host_mib']}; the largest of all "
        f"cases. Device memory: {definitions['peak_device_mib']}."
    )
    return table(caption, header, body) + table(size_caption, ("what", "value"), sizes)

"""Profile of one call: the operations of XLA's and PyTorch's profilers, summed by kind."""

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

KINDS = ("products", "copies", "other")
# XLA's CPU backend passes matrix products, and reductions fused with them, to YNNPACK (`ynn_fusion`); the names of all
# other operations describe them.
XLA = (
    (r"ynn|dot|conv(?!ert)", "products"),
    # The name of a fusion lists its operations: a fusion that also computes is not a copy.
    (
        r"^((wrapped|fusion|copy|transpose|slice|dynamic|update|concatenate|pad|gather|bitcast|reshape|broadcast|constant)"
        r"[-_.\d]*)+$",
        "copies",
    ),
)
CONTAINERS = r"(.*_)?(while|cond|conditional|call)(\.|$)"  # the operations inside have separate events
TORCH = (
    (r"mm$|baddbmm|convolution|conv\d?d|scaled_dot_product|linear$|matmul$", "products"),
    (r"copy_|clone|cat$|contiguous|pad|index|stack|slice|permute|view|roll", "copies"),
)


def kind(name: str, rules: Sequence[tuple[str, str]]) -> str:
    """Return the kind of an operation by its name; the first matching rule decides."""
    return next((result for pattern, result in rules if re.search(pattern, name)), "other")


def ours(run: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds of each kind in XLA; `between` is time of the host in which no operation ran."""
    import jax

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    return _sums(_operations(data), XLA, seconds)


def _operations(data: Any) -> Iterator[tuple[str, float]]:
    """Yield each operation's name and its own seconds, without the events nested in it."""
    for plane in data.planes:
        for line in plane.lines:
            events = [event for event in line.events if "hlo_op" in dict(event.stats)]
            open_: list[list[Any]] = []  # name, end, own time
            for event in sorted(events, key=lambda e: (e.start_ns, -e.duration_ns)):
                while open_ and open_[-1][1] <= event.start_ns:
                    yield from _closed(open_.pop())
                if open_:
                    open_[-1][2] -= event.duration_ns
                open_.append([event.name, event.start_ns + event.duration_ns, event.duration_ns])
            for entry in open_:
                yield from _closed(entry)


def _closed(entry: list[Any]) -> Iterator[tuple[str, float]]:
    name, _, own = entry
    if not re.match(CONTAINERS, name):
        yield name, max(0.0, own) / 1e9


def theirs(run: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds of each kind in PyTorch, by own time; `between` is time in Python."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
    rows = ((row.key, row.self_cpu_time_total / 1e6) for row in profile.key_averages())
    return _sums(rows, TORCH, seconds)


def _sums(rows: Iterator[tuple[str, float]], rules: Sequence[tuple[str, str]], seconds: float) -> dict[str, float]:
    sums = dict.fromkeys(KINDS, 0.0)
    for name, spent in rows:
        sums[kind(name, rules)] += spent
    return {**sums, "between": max(0.0, seconds - sum(sums.values())), "seconds": seconds}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return one traced call per side as Markdown, in shares of its time; tracing slows down many small operations."""
    lines = ["| work | dtype | by | traced, s | products | copies | other | between |", "|---" * 8 + "|"]
    for row in rows:
        for side, name in (("ours", "ours"), ("theirs", row["reference"])):
            found = row[f"{side}_where"]
            shares = [f"{found[kind] / found['seconds']:.0%}" for kind in (*KINDS, "between")]
            cells = [row["work"], row["dtype"], name, f"{found['seconds']:.3g}", *shares]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)

"""What a result costs: parameters, FLOPs, seconds a volume and peak memory, measured while cases are segmented.

Files of other methods do not say what they cost: their cost is unknown, and no flag declares it, since a declared
figure would stand beside measured ones.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sam2_3dmed_jax.inference.automatic import AutomaticPredictor
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.metrics.statistics import spread
from sam2_3dmed_jax.model.parameter_groups import PARTS, sizes_of_parts
from sam2_3dmed_jax.runtime import host_memory

MEASURED = ("seconds", "tflops", "peak_host_mib", "peak_device_mib")  # numbers of a case
UNKNOWN = {**dict.fromkeys(MEASURED, math.nan), "compiled": ""}
DEFINITIONS = {
    "seconds": "wall time of a case, all its classes together, without reading files and measuring",
    "compiled": "'yes': XLA compiled, or loaded from its cache, while the case was segmented: a shape was new",
    "seconds_a_volume": "over cases during which nothing was compiled; the others are counted",
    "tflops": (
        "1e12 floating-point operations of a case, a multiply-add being two, of matrix products and convolutions, from "
        "the jaxpr, loops times their length: each slice encoded once, each object decoded once on each slice; without "
        "the padding of blocks; of a U-Net, its windows"
    ),
    "peak_host_mib": "peak resident memory of the process while the case was segmented, all that it holds, MiB",
    "peak_device_mib": "peak memory of the first device since the process began, MiB; none where it does not tell",
}
_COMPILED = "/jax/core/compile/backend_compile_duration"
_MIB = 1 << 20


class Meter:
    """Around the segmentation of a case: its seconds, its peak memory, and whether it compiled."""

    def __enter__(self) -> Meter:
        self._compilations = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        host_memory.forget_peak()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds = time.perf_counter() - self._start
        self._peak = host_memory.peak()
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def columns(self, flops: int) -> dict[str, Any]:
        """The columns `UNKNOWN`, measured; `flops` of the case."""
        told = jax.local_devices()[0].memory_stats() or {}
        return {
            "seconds": self._seconds,
            "tflops": flops / 1e12,
            "peak_host_mib": self._peak / _MIB,
            "peak_device_mib": told.get("peak_bytes_in_use", math.nan) / _MIB,
            "compiled": "yes" if self._compilations else "no",
        }

    def _listen(self, event: str, *_: float, **__: object) -> None:
        self._compilations += event == _COMPILED


def fixed_cost(predictor: VolumePredictor | AutomaticPredictor) -> dict[str, Any]:
    """What is alike for all cases.

    Returns:
        {"parameters": {"total", "srpp", "bd": of these modules, "parts": {name: number}}, "machine": words}. Parameters
        are those of the model that ran, all of them: also of heads that serve training alone.
    """
    sizes = sizes_of_parts({name: weight.shape for name, weight in predictor.weights.items()})
    parts = {name: entry["parameters"] for name, entry in sizes.items()}
    device = jax.local_devices()[0]
    machine = f"{device.device_kind} ({device.platform}), {os.cpu_count()} cores {platform.machine()}"
    return {
        "parameters": {
            "total": sum(parts.values()),
            "srpp": parts.get(PARTS["slice_position."], 0),
            "bd": parts.get(PARTS["boundary."], 0),
            "parts": parts,
        },
        "machine": machine,
    }


def summarise_cost(rows: Sequence[Mapping[str, Any]], fixed: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any] | None:
    """The cost of all cases of a summary.

    Args:
        rows: with the columns `UNKNOWN`, the same in all rows of a case and seed.
        fixed: `fixed_cost`'s of each evaluation that is pooled here; what differs between them is None.

    Returns:
        {"seconds_a_volume": `statistics.spread`, "compiling": cases left out of it, "tflops_a_volume": spread,
        "peak_host_mib", "peak_device_mib": the largest or None, "parameters", "machine"}; None: nothing is known.
    """
    cases = list({(row["case"], row.get("seed", "")): row for row in rows}.values())
    of = {name: np.array([row.get(name, math.nan) for row in cases], float) for name in MEASURED}
    if np.isnan(np.concatenate(list(of.values()))).all() and not any(fixed):
        return None
    compiling = np.array([row.get("compiled") == "yes" for row in cases])
    peaks = {name: float(np.nanmax(of[name])) for name in MEASURED[2:] if not np.isnan(of[name]).all()}
    alike = {name: entry for name, entry in (fixed[0] if fixed else {}).items() if all(f[name] == entry for f in fixed)}
    return {
        "seconds_a_volume": spread(np.where(compiling, math.nan, of["seconds"])[:, None]),
        "compiling": int(compiling.sum()),
        "tflops_a_volume": spread(of["tflops"][:, None]),
        **{name: peaks.get(name) for name in MEASURED[2:]},
        **{name: alike.get(name) for name in ("parameters", "machine")},
    }

"""Cost of a result: parameters, FLOPs, seconds per volume and peak memory, measured while cases are segmented.

The cost of other methods' files is unknown. No flag declares it, because declared and measured figures do not compare.
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
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from sam2_3dmed_jax.inference.automatic import AutomaticPredictor
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.metrics.statistics import spread
from sam2_3dmed_jax.model.parameter_counts import MODULES, count_parameters
from sam2_3dmed_jax.runtime import host_memory


class CaseCost(TypedDict):
    """Cost columns of one case; NaN and "" where they are unknown."""

    seconds: float
    tflops: float
    peak_host_mib: float
    peak_device_mib: float
    compiled: str  # "yes", "no" or ""


class ParameterCounts(TypedDict):
    """Parameters of the model that runs, including heads that only training uses."""

    total: int
    srpp: int
    bd: int
    parts: dict[str, int]


class FixedCost(TypedDict):
    """The cost that is the same for all cases."""

    parameters: ParameterCounts
    machine: str
    compute_dtype: str


class CostSummary(TypedDict):
    """The cost of all cases of a summary."""

    seconds_a_volume: dict[str, float | int | None]  # `statistics.spread`
    compiling: int  # cases left out of the seconds
    tflops_a_volume: dict[str, float | int | None]
    peak_host_mib: float | None  # the largest
    peak_device_mib: float | None
    parameters: ParameterCounts | None  # None: unknown, or not the same in all evaluations
    machine: str | None
    compute_dtype: str | None


MEASURED = ("seconds", "tflops", "peak_host_mib", "peak_device_mib")  # numbers of a case
TITLES = {
    "tflops": "FLOPs (1e12)",
    "peak_host_mib": "peak host memory (MiB)",
    "peak_device_mib": "peak device memory (MiB)",
}
UNKNOWN = CaseCost(seconds=math.nan, tflops=math.nan, peak_host_mib=math.nan, peak_device_mib=math.nan, compiled="")
DEFINITIONS = {
    "seconds": "wall time of a case, all its classes together, without reading files and computing metrics",
    "compiled": "'yes': XLA compiled, or loaded from its cache, while the case was segmented: a shape was new",
    "seconds_a_volume": "over cases during which nothing was compiled; the others are counted",
    "tflops": (
        "1e12 floating-point operations of a case, a multiply-add being two, of matrix products and convolutions, from "
        "the jaxpr, loops times their length: each slice encoded once, each object decoded once on each slice; without "
        "the padding of blocks; of a U-Net, its windows"
    ),
    "peak_host_mib": "peak resident memory of the whole process while the case was segmented, MiB",
    "peak_device_mib": "peak memory of the first device since the process began, MiB; NaN if it is not reported",
}
_COMPILED = "/jax/core/compile/backend_compile_duration"
_MIB = 1 << 20


class Meter:
    """A context around the segmentation of a case, which measures its seconds, its peak memory and its compilations."""

    def __enter__(self) -> Meter:
        self._compilations = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        host_memory.reset_peak()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds = time.perf_counter() - self._start
        self._peak = host_memory.peak_bytes()
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def columns(self, flops: int) -> CaseCost:
        """Return the measured cost, with the FLOPs of the case."""
        device_memory = jax.local_devices()[0].memory_stats() or {}
        return CaseCost(
            seconds=self._seconds,
            tflops=flops / 1e12,
            peak_host_mib=self._peak / _MIB,
            peak_device_mib=device_memory.get("peak_bytes_in_use", math.nan) / _MIB,
            compiled="yes" if self._compilations else "no",
        )

    def _listen(self, event: str, *_: float, **__: object) -> None:
        self._compilations += event == _COMPILED


def fixed_cost(predictor: VolumePredictor | AutomaticPredictor) -> FixedCost:
    """Return the cost that is the same for all cases."""
    sizes = count_parameters({name: weight.shape for name, weight in predictor.weights.items()})
    parts = {name: entry["parameters"] for name, entry in sizes.items()}
    device = jax.local_devices()[0]
    return FixedCost(
        parameters=ParameterCounts(
            total=sum(parts.values()),
            srpp=parts.get(MODULES["slice_position."], 0),
            bd=parts.get(MODULES["boundary."], 0),
            parts=parts,
        ),
        machine=f"{device.device_kind} ({device.platform}), {os.cpu_count()} cores {platform.machine()}",
        compute_dtype=predictor.model.info.model.compute_dtype,
    )


def summarise_cost(rows: Sequence[Mapping[str, Any]], fixed: Sequence[Mapping[str, Any]] = ()) -> CostSummary | None:
    """Summarise the cost of all cases.

    Args:
        rows: with the columns of `CaseCost`, the same in all rows of a case and seed.
        fixed: the `FixedCost` of each evaluation that is pooled, or {} where it is unknown; values that differ are
            None in the summary.

    Returns:
        None if nothing is known.
    """
    cases = list({(row["case"], row.get("seed", "")): row for row in rows}.values())
    columns = {name: np.array([row.get(name, math.nan) for row in cases], float) for name in MEASURED}
    if np.isnan(np.concatenate(list(columns.values()))).all() and not any(fixed):
        return None
    compiling = np.array([row.get("compiled") == "yes" for row in cases])
    peaks = {name: float(np.nanmax(columns[name])) for name in MEASURED[2:] if not np.isnan(columns[name]).all()}
    alike = {
        name: entry for name, entry in (fixed[0] if fixed else {}).items() if all(f.get(name) == entry for f in fixed)
    }
    return CostSummary(
        seconds_a_volume=spread(np.where(compiling, math.nan, columns["seconds"])[:, None]),
        compiling=int(compiling.sum()),
        tflops_a_volume=spread(columns["tflops"][:, None]),
        peak_host_mib=peaks.get("peak_host_mib"),
        peak_device_mib=peaks.get("peak_device_mib"),
        parameters=alike.get("parameters"),
        machine=alike.get("machine"),
        compute_dtype=alike.get("compute_dtype"),
    )

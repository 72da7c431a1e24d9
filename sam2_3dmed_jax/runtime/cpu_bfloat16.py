"""Whether this CPU multiplies faster in bfloat16 than in float32, measured once and kept in the cache.

CPUs with AMX or AVX512-BF16 do; on others XLA converts each operand, which is slower. A measurement decides, because
XLA may not use what the CPU has.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.atomic_files import write_text
from sam2_3dmed_jax.runtime.cache_folder import cache_folder
from sam2_3dmed_jax.runtime.user_files import read_json, typed

FILE = "cpu_bfloat16.json"  # in the cache
LIMIT = 0.7  # time of a product in bfloat16 over that in float32: the rest of the model gains less
REPEATS = 5
SHAPE = (1024, 384, 1536)  # rows, inner and outer channels of a product in the encoder


@dataclass(frozen=True)
class Probe:
    """A measurement, and what it is valid for."""

    cpu: str
    jaxlib: str
    ratio: float  # time of a product in bfloat16 over that in float32


def is_faster() -> bool:
    """Return whether to predict in bfloat16 on this CPU; takes some 50 ms in the first call on a machine."""
    probe = _stored()
    return (store(measure()) if probe is None else probe.ratio) < LIMIT


def store(ratio: float) -> float:
    """Keep the ratio of a measurement on this machine, and return it."""
    probe, path = Probe(_cpu_name(), metadata.version("jaxlib"), round(ratio, 3)), _file()
    if not path.parent.exists() or os.access(path.parent, os.W_OK):
        with contextlib.suppress(UserError):  # it is measured again next time
            write_text(path, json.dumps(asdict(probe), indent=2) + "\n")
    return ratio


def measure() -> float:
    """Return the time of a product of matrices in bfloat16 over that in float32, the best of some repeats of each."""
    import jax
    import jax.numpy as jnp

    rows, inner, outer = SHAPE
    # As the model multiplies; XLA converts the operands of products whose result is bfloat16.
    product = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.float32))
    seconds = []
    for dtype in (jnp.bfloat16, jnp.float32):
        x, y = jnp.ones((rows, inner), dtype), jnp.ones((inner, outer), dtype)
        jax.block_until_ready(product(x, y))  # type: ignore[no-untyped-call]
        best = float("inf")
        for _ in range(REPEATS):
            start = time.perf_counter()
            jax.block_until_ready(product(x, y))  # type: ignore[no-untyped-call]
            best = min(best, time.perf_counter() - start)
        seconds.append(best)
    return seconds[0] / seconds[1]


def _file() -> Path:
    return cache_folder() / FILE


def _stored() -> Probe | None:
    """Return what was measured on this machine, or None."""
    try:
        probe: Probe = typed(read_json(_file(), ""), Probe, FILE, "")
    except UserError:  # it is measured again
        return None
    return probe if (probe.cpu, probe.jaxlib) == (_cpu_name(), metadata.version("jaxlib")) else None


def _cpu_name() -> str:
    """Return the kind of the CPU, which tells machines with a shared cache apart.

    `platform.processor` would start another program.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):  # virtual machines hide the model, but not what it can do
                names = set(line.split()) & {"amx_bf16", "avx512_bf16", "bf16", "avx512f", "avx2"}
                return " ".join([platform.machine(), *sorted(names)])
    return platform.machine()

"""Data sheets of TPU and GPU chips, for plans and for the utilisation of a run.

TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} (HBM, bf16 peak, inter-chip bandwidth per chip and direction); the
clock is the one at which the matrix units reach that peak. GPUs: NVIDIA's data sheets of H100 SXM and A100 SXM 80 GB;
the further values that XLA's compiler needs are from openxla/xla, `backends/gpu/target_config/specs`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One kind of chip."""

    name: str
    platform: str  # "tpu" or "cuda"
    hbm_bytes: int
    bf16_flops: float  # peak, FLOP/s
    float32_flops: float  # FLOP/s at matmul precision `highest`; a TPU uses six bf16 products for one
    hbm_bandwidth: float  # bytes/s
    network: float  # bytes/s that a chip sends to its neighbours
    clock_hz: float = 0.0  # TPUs only: their compiler counts cycles
    outer_network: float = 0.0  # bytes/s per GPU between machines of eight
    target: tuple[tuple[str, int | float], ...] = ()  # fields of XLA's `GpuDeviceInfoProto`
    capability: tuple[int, int] = (0, 0)  # CUDA compute capability
    kind: str = ""  # `jax.Device.device_kind`


def _tpu(name: str, kind: str, gib: int, flops: float, bandwidth: float, gigabits: float, clock: float) -> Chip:
    return Chip(name, "tpu", gib << 30, flops, flops / 6, bandwidth, gigabits * 1e9 / 8, clock, kind=kind)


_GPU = {
    **{"threads_per_block_limit": 1024, "threads_per_warp": 32, "threads_per_core_limit": 2048},
    **{"shared_memory_per_block": 49152, "registers_per_core_limit": 65536, "registers_per_block_limit": 65536},
    **{"block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535},
    **{"thread_dim_limit_x": 1024, "thread_dim_limit_y": 1024, "thread_dim_limit_z": 64},
}
_H100 = {
    **{"core_count": 132, "fpus_per_core": 128, "l2_cache_size": 52428800, "clock_rate_ghz": 1.98},
    **{"shared_memory_per_core": 233472, "shared_memory_per_block_optin": 232448},
    **{"memory_bandwidth": 3352320000000, "device_memory_size": 84942979072},
}
_A100 = {
    **{"core_count": 108, "fpus_per_core": 64, "l2_cache_size": 41943040, "clock_rate_ghz": 1.41},
    **{"shared_memory_per_core": 167936, "shared_memory_per_block_optin": 166912},
    **{"memory_bandwidth": 2039040000000, "device_memory_size": 85100068864},
}


def _gpu(
    name: str, kind: str, capability: tuple[int, int], facts: dict, rates: tuple[float, float, float, float]
) -> Chip:
    bf16, float32, network, outer = rates
    memory, bandwidth = facts["device_memory_size"], float(facts["memory_bandwidth"])
    target = tuple({**_GPU, **facts}.items())
    return Chip(name, "cuda", memory, bf16, float32, bandwidth, network, 0.0, outer, target, capability, kind)


CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", "TPU v4", 32, 275e12, 1.2e12, 2400, 1.05e9),
        _tpu("v5e", "TPU v5 lite", 16, 197e12, 0.82e12, 1600, 1.5e9),
        _tpu("v5p", "TPU v5", 95, 459e12, 2.77e12, 4800, 1.75e9),
        _tpu("v6e", "TPU v6 lite", 32, 918e12, 1.64e12, 3584, 1.75e9),
        # NVLink per direction; between machines, one 400 or 200 Gbit/s adapter per GPU, as in DGX H100 and A100.
        _gpu("h100", "NVIDIA H100 80GB HBM3", (9, 0), _H100, (989e12, 67e12, 450e9, 50e9)),
        _gpu("a100", "NVIDIA A100-SXM4-80GB", (8, 0), _A100, (312e12, 19.5e12, 300e9, 25e9)),
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """Return the chip of a `jax.Device.device_kind`, or None if it is not in `CHIPS`."""
    return next((chip for chip in CHIPS.values() if chip.kind == device_kind), None)

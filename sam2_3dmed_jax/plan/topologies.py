"""Chips that a plan can be made for: what their data sheets say, and how XLA's compilers are told of them.

TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} (HBM, bf16 peak, inter-chip bandwidth a chip and direction); the
clock is the one at which the matrix units reach that peak. GPUs: NVIDIA's data sheets of H100 SXM and A100 SXM 80 GB;
what the compiler needs to know beside is of openxla/xla, `backends/gpu/target_config/specs`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from sam2_3dmed_jax.errors import UserError


@dataclass(frozen=True)
class Chip:
    """One kind of chip."""

    name: str
    platform: str  # "tpu" or "cuda"
    hbm_bytes: int
    bf16_flops: float  # peak, FLOP/s
    float32_flops: float  # FLOP/s at matmul precision `highest`: TPUs make a product of six bf16 ones
    hbm_bandwidth: float  # bytes/s
    network: float  # bytes/s that a chip can send to its neighbours
    clock_hz: float = 0.0  # of TPUs, whose compiler counts cycles
    outer_network: float = 0.0  # bytes/s a GPU between machines of eight
    target: tuple[tuple[str, int | float], ...] = ()  # `GpuDeviceInfoProto`
    capability: tuple[int, int] = (0, 0)
    description: str = ""


def _tpu(name: str, gib: int, flops: float, bandwidth: float, gigabits: float, clock: float) -> Chip:
    return Chip(name, "tpu", gib << 30, flops, flops / 6, bandwidth, gigabits * 1e9 / 8, clock)


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
    name: str, description: str, capability: tuple[int, int], facts: dict, rates: tuple[float, float, float, float]
) -> Chip:
    bf16, float32, network, outer = rates
    memory, bandwidth = facts["device_memory_size"], float(facts["memory_bandwidth"])
    target = tuple({**_GPU, **facts}.items())
    return Chip(name, "cuda", memory, bf16, float32, bandwidth, network, 0.0, outer, target, capability, description)


CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", 32, 275e12, 1.2e12, 2400, 1.05e9),
        _tpu("v5e", 16, 197e12, 0.82e12, 1600, 1.5e9),
        _tpu("v5p", 95, 459e12, 2.77e12, 4800, 1.75e9),
        _tpu("v6e", 32, 918e12, 1.64e12, 3584, 1.75e9),
        # NVLink a direction; between machines one 400 or 200 Gbit/s adapter a GPU, as in DGX H100 and A100.
        _gpu("h100", "NVIDIA H100 80GB HBM3", (9, 0), _H100, (989e12, 67e12, 450e9, 50e9)),
        _gpu("a100", "NVIDIA A100-SXM4-80GB", (8, 0), _A100, (312e12, 19.5e12, 300e9, 25e9)),
    )
}
_KNOWN = "v4:2x2x4, v5e:4x4, v5p:2x2x4, v6e:4x4, h100:8 and a100:8 are such"


@dataclass(frozen=True)
class Topology:
    """Chips and how they are connected."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """How many."""
        return math.prod(self.shape)

    @property
    def network(self) -> float:
        """Bytes/s that a chip can send."""
        return self.chip.outer_network if self.chip.outer_network and self.chips > 8 else self.chip.network

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    def devices(self) -> list[Any]:
        """Devices to compile for, which need not be there; needs the compiler (`toolchain.check`).

        Raises:
            UserError: the compiler knows no such slice.
        """
        from jax.experimental import topologies

        try:
            if self.chip.platform == "tpu":
                return topologies.get_topology_desc(str(self), "tpu").devices
            shape = f"1x1x{self.chips}" if self.chips <= 8 else f"1x{self.chips // 8}x8"
            kinds = {"target_config": gpu_target(self.chip), "topology": shape}
            return topologies.get_topology_desc(self.chip.name, "cuda", **kinds).devices
        except Exception as error:  # of XLA, of many kinds
            raise UserError(
                f"--topology: the compiler makes nothing for {self} ({str(error).splitlines()[0][:160]}); "
                f"give a slice that is offered: {_KNOWN}"
            ) from error


def parse_topology(text: str) -> Topology:
    """Read `v5e:4x4` or `h100:8`.

    Raises:
        UserError: no such chip, or no such shape.
    """
    name, _, shape = text.lower().partition(":")
    if name not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", shape):
        raise UserError(
            f"--topology: '{text}' is not known; give CHIP:SHAPE with a chip of {', '.join(CHIPS)}: {_KNOWN}"
        )
    topology = Topology(CHIPS[name], tuple(map(int, shape.split("x"))))
    if topology.chip.platform == "cuda" and (len(topology.shape) > 1 or (topology.chips > 8 and topology.chips % 8)):
        raise UserError(
            f"--topology: '{text}' is no number of GPUs; give 1 to 8, or a multiple of 8, such as {name}:16"
        )
    return topology


def gpu_target(chip: Chip) -> str:
    """`GpuTargetConfigProto` of a GPU, as text."""
    facts = "".join(f"  {name}: {value}\n" for name, value in chip.target)
    major, minor = chip.capability
    return (
        f"gpu_device_info {{\n{facts}  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
        f'platform_name: "CUDA"\ndnn_version_info {{ major: 9 minor: 8 patch: 0 }}\n'
        f'device_description_str: "{chip.description}"\n'
    )

"""Hardware topologies of a plan: chips, their number and connection, and their description for XLA's compilers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.chips import CHIPS, Chip

# The two cores of a v4 chip are one device at run time, but two for the compiler alone, so a plan would be wrong.
PLANNED = tuple(name for name in CHIPS if name != "v4")
_EXAMPLES = "such as v5e:4x4, v5p:2x2x4, v6e:4x4, h100:8 or a100:8"


@dataclass(frozen=True)
class Topology:
    """Chips and how they are connected."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """The number of chips."""
        return math.prod(self.shape)

    @property
    def network(self) -> float:
        """The bandwidth of a chip to other chips, bytes/s."""
        return self.chip.outer_network if self.chip.outer_network and self.chips > 8 else self.chip.network

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    def devices(self) -> list[Any]:
        """Return devices to compile for, which need not exist; requires the compiler (`toolchain.check`).

        Raises:
            UserError: the compiler does not support this topology.
        """
        from jax.experimental import topologies

        try:
            if self.chip.platform == "tpu":
                # A host has 2 x 2 chips, or all chips of a smaller topology.
                host = (*(min(side, 2) for side in self.shape), 1, 1)[:2] + (1,)
                return topologies.get_topology_desc(str(self), "tpu", chips_per_host_bounds=host).devices
            shape = f"1x1x{self.chips}" if self.chips <= 8 else f"1x{self.chips // 8}x8"
            kinds = {"target_config": gpu_target(self.chip), "topology": shape}
            return topologies.get_topology_desc(self.chip.name, "cuda", **kinds).devices
        except Exception as error:  # XLA raises many types
            raise UserError(
                f"--topology: the compiler does not support {self} ({str(error).splitlines()[0][:160]}); "
                f"give a topology that exists, {_EXAMPLES}"
            ) from error


def parse_topology(text: str) -> Topology:
    """Read `v5e:4x4` or `h100:8`.

    Raises:
        UserError: the chip or its shape is unknown.
    """
    name, _, shape = text.lower().partition(":")
    if name not in PLANNED or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", shape):
        raise UserError(
            f"--topology: '{text}' is unknown; give CHIP:SHAPE with one of the chips {', '.join(PLANNED)}, {_EXAMPLES}"
        )
    topology = Topology(CHIPS[name], tuple(map(int, shape.split("x"))))
    if topology.chip.platform == "cuda" and (len(topology.shape) > 1 or (topology.chips > 8 and topology.chips % 8)):
        raise UserError(
            f"--topology: '{text}' is not a valid number of GPUs; give 1 to 8, or a multiple of 8, such as {name}:16"
        )
    return topology


def gpu_target(chip: Chip) -> str:
    """Return the `GpuTargetConfigProto` of a GPU as text."""
    facts = "".join(f"  {name}: {value}\n" for name, value in chip.target)
    major, minor = chip.capability
    return (
        f"gpu_device_info {{\n{facts}  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
        f'platform_name: "CUDA"\ndnn_version_info {{ major: 9 minor: 8 patch: 0 }}\n'
        f'device_description_str: "{chip.kind}"\n'
    )

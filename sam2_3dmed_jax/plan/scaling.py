"""Scaling of an experiment's train step over numbers of chips, from plans of each number (`plan --scaling`).

Weak scaling has one clip per chip; strong scaling has the experiment's own batch, which more chips share. Each number
of chips is compiled, so that collectives and memory come from the program and not from a formula.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.plan.process import Stage, plan_experiment
from sam2_3dmed_jax.plan.report import ProgramPlan
from sam2_3dmed_jax.plan.topologies import Topology, parse_topology

# Shapes that exist, each with four or eight times the chips of the one before.
SHAPES_2D = ((1, 1), (2, 2), (4, 4), (8, 8), (16, 16))
SHAPES_3D = ((1, 1, 1), (2, 2, 1), (2, 2, 4), (4, 4, 4), (4, 8, 8))
SHAPES_GPU = ((1,), (8,), (64,), (256,))
CHIPS_PER_HOST = {"tpu": 4, "cuda": 8}


@dataclass(frozen=True)
class ScalingRow:
    """The train step on one number of chips.

    Attributes:
        kind: "weak" or "strong".
        topology: the chips.
        clips: per step, of all chips.
        program: the compiled step.
        efficiency: the clips per second of a chip, as a share of those of one chip; None if a step does not compile.
        steps: of the whole run.
    """

    kind: str
    topology: Topology
    clips: int
    program: ProgramPlan
    efficiency: float | None
    steps: int

    @property
    def seconds(self) -> float | None:
        """Seconds of a step, at least; the network is added, as if nothing were computed meanwhile."""
        return seconds_of_step(self.program)

    @property
    def clips_per_host(self) -> float | None:
        """Clips per second that the input pipeline of each host has to deliver."""
        if self.seconds is None:
            return None
        hosts = math.ceil(self.topology.chips / CHIPS_PER_HOST[self.topology.chip.platform])
        return self.clips / self.seconds / hosts

    @property
    def chip_hours(self) -> float | None:
        """Hours of one chip that the whole run costs."""
        return None if self.seconds is None else self.seconds * self.steps * self.topology.chips / 3600

    def record(self) -> dict[str, Any]:
        """Return the record for `--json`."""
        return {
            "kind": self.kind,
            "topology": str(self.topology),
            "chips": self.topology.chips,
            "clips_per_step": self.clips,
            "seconds_per_step": self.seconds,
            "clips_per_second_and_host": self.clips_per_host,
            "efficiency": self.efficiency,
            "chip_hours": self.chip_hours,
            **self.program.record(),
        }

    def cells(self) -> list[str]:
        """Return the cells of the row of the table."""
        sent = None if self.program.collective_bytes is None else sum(self.program.collective_bytes.values())
        memory = f"{self.program.total / 2**30:.2f}" + ("" if self.program.fits else " (does not fit)")
        return [
            self.kind,
            str(self.topology),
            str(self.topology.chips),
            str(self.clips),
            memory,
            _number(sent and sent / 1e6, ".1f") if sent != 0 else "0",
            _number(self.seconds and 1e3 * self.seconds, ".0f"),
            _number(self.clips_per_host, ".1f"),
            _number(self.efficiency and 100 * self.efficiency, ".0f"),
            _number(self.chip_hours, ".1f"),
        ]


HEADER = (
    "scaling",
    "topology",
    "chips",
    "clips per step",
    "HBM per chip, GiB",
    "network per chip and step, MB",
    "step, ms",
    "clips/s per host",
    "efficiency, %",
    "chip-hours of the run",
)


def plan_scaling(config: ExperimentConfig, topology: str, stage: Stage | None = None) -> Iterator[ScalingRow]:
    """Yield the rows for weak scaling, then for strong scaling, each when its step is compiled.

    Args:
        config: the experiment. Its mesh must leave `mesh.data` open, and its batch size is that of strong scaling. A
            chip computes one clip at a time.
        topology: the largest one, such as `v5e:16x16`.
        stage: called with the name of each stage.

    Raises:
        UserError: as `plan_experiment`, or the mesh does not grow with the chips.
    """
    if config.mesh.data != -1 or config.mesh.fsdp < 1:
        raise UserError(
            f"mesh: {config.mesh.data} x {config.mesh.fsdp} does not grow with the chips; let mesh.data be -1 and "
            "mesh.fsdp a number"
        )
    smaller = topologies_up_to(parse_topology(topology))
    for kind in ("weak", "strong"):
        one_chip = None  # seconds of one clip on one chip
        for chips in smaller:
            clips = chips.chips if kind == "weak" else config.training.batch_size
            if clips % chips.chips or chips.chips % config.mesh.fsdp:
                continue  # the chips cannot share the clips, or the parameters
            accumulation = clips // chips.chips
            training = replace(config.training, batch_size=clips, accumulation=accumulation)
            scaled = config.replace(training=training)

            def named(text: str, name: str = f"{kind}, {chips}") -> None:
                if stage:
                    stage(f"{name}: {text}")

            (program,) = plan_experiment(scaled, str(chips), "train", named).programs
            seconds = seconds_of_step(program)
            if one_chip is None and seconds is not None:
                one_chip = seconds * chips.chips / clips
            efficiency = None if not seconds or one_chip is None else one_chip * clips / (seconds * chips.chips)
            yield ScalingRow(kind, chips, clips, program, efficiency, config.training.steps)


def topologies_up_to(largest: Topology) -> list[Topology]:
    """Return the topologies of the same chip with at most as many chips, smallest first."""
    is_gpu = largest.chip.platform == "cuda"
    shapes: tuple[tuple[int, ...], ...] = SHAPES_GPU if is_gpu else (SHAPES_2D, SHAPES_3D)[len(largest.shape) == 3]
    smaller = [Topology(largest.chip, shape) for shape in shapes if math.prod(shape) < largest.chips]
    return [*smaller, largest]


def seconds_of_step(program: ProgramPlan) -> float | None:
    """Return the seconds of one run, at least, with the network after everything else; None if it does not compile."""
    times = program.times
    return None if times is None else max(times.compute, times.memory, times.compiler or 0.0) + times.network


def table(rows: list[ScalingRow]) -> list[str]:
    """Return the lines of a Markdown table."""
    cells = [list(HEADER), ["---"] * len(HEADER), *(row.cells() for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)

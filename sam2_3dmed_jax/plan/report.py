"""What a plan says: memory against the chip's, work, traffic, and the time and bound that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.plan.topologies import Topology


@dataclass(frozen=True)
class Times:
    """Seconds of one run of a program, if only one thing held it up."""

    compute: float  # FLOPs at the chip's peak
    memory: float  # bytes to and from HBM at its bandwidth
    network: float  # bytes over the network; an all-reduce goes around twice
    compiler: float | None  # the compiler's own estimate, where it makes one

    @property
    def bound(self) -> str:
        """What holds it up most."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))

    @property
    def estimate(self) -> float:
        """Seconds that it takes at least."""
        return max(self.compute, self.memory, self.network, self.compiler or 0.0)


@dataclass(frozen=True)
class ProgramPlan:
    """One compiled program. Without traffic and times (`moved`) when it is too large to be compiled."""

    name: str
    chips: int
    memory: dict[str, int]  # HBM bytes a chip by kind
    capacity: int  # HBM bytes of a chip
    compiles: bool
    message: str  # the compiler's, when it does not compile
    flops: int  # of all chips together
    bytes: int | None  # to and from HBM, a chip
    collective_bytes: dict[str, int] | None  # over the network, a chip
    times: Times | None
    largest: list[dict[str, Any]]
    unknown_loops: int

    @property
    def total(self) -> int:
        """HBM bytes that it needs on each chip."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether a chip holds it."""
        return self.compiles and self.total <= self.capacity

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        times = self.times
        return {
            "hbm_bytes_per_chip": {"total": self.total, **{_key(kind): size for kind, size in self.memory.items()}},
            "hbm_capacity_bytes": self.capacity,
            "fits": self.fits,
            "message": self.message,
            "flops": self.flops,
            "flops_per_chip": self.flops / self.chips,
            "hbm_traffic_bytes_per_chip": self.bytes,
            "collective_bytes_per_chip": self.collective_bytes,
            "seconds": times and {**times.__dict__, "estimate": times.estimate},
            "bound": times and times.bound,
            "largest_buffers": self.largest,
            "loops_of_unknown_length": self.unknown_loops,
        }

    def lines(self) -> list[str]:
        """For people."""
        verdict = "fits" if self.fits else "does not fit"
        lines = [
            f"{self.name}, {self.chips} chip{'s' * (self.chips > 1)}: {verdict}",
            f"  HBM a chip: {_bytes(self.total)} of {_bytes(self.capacity)}",
            *(f"    {_bytes(size):>10}  {kind}" for kind, size in self.memory.items() if size),
        ]
        if self.largest:
            lines.append("  largest buffers (not all at once)")
            lines += [f"    {_bytes(b['bytes']):>10}  {b['shape']}  {b['made by'][-90:]}" for b in self.largest]
        lines.append(f"  FLOPs: {_si(self.flops)}, {_si(self.flops / self.chips)} a chip")
        if self.times is None or self.bytes is None or self.collective_bytes is None:
            return [*lines, f"  the compiler gives up, so there are neither traffic nor times: {self.message}"]
        network = ", ".join(f"{kind} {_bytes(size)}" for kind, size in self.collective_bytes.items()) or "none"
        lines += [f"  HBM traffic a chip: {_bytes(self.bytes)}", f"  network a chip: {network}"]
        parts = ", ".join(f"{name} {_seconds(getattr(self.times, name))}" for name in ("compute", "memory", "network"))
        own = "" if self.times.compiler is None else f", compiler's estimate {_seconds(self.times.compiler)}"
        lines.append(f"  time: at least {_seconds(self.times.estimate)} ({parts}{own}); bound by {self.times.bound}")
        if self.unknown_loops:
            lines.append(f"  {self.unknown_loops} loops of unknown length are counted once")
        return lines


@dataclass(frozen=True)
class Plan:
    """What an experiment takes on a topology."""

    topology: Topology
    what: str
    start: str  # which weights it starts from, as it decides what trains
    programs: tuple[ProgramPlan, ...]

    @property
    def fits(self) -> bool:
        """Whether all of it does."""
        return all(program.fits for program in self.programs)

    def record(self) -> dict[str, Any]:
        """For `--json`: the program that needs most memory, and all by name."""
        most = max(self.programs, key=lambda program: program.total)
        return {
            "topology": str(self.topology),
            "chips": self.topology.chips,
            "what": self.what,
            "start": self.start,
            **most.record(),
            "fits": self.fits,
            "programs": {program.name: program.record() for program in self.programs},
        }

    def lines(self) -> list[str]:
        """For people."""
        start = [f"starts from {self.start}"] if self.what == "train" else []
        return [f"{self.topology}", *start, *(line for program in self.programs for line in program.lines())]


def make_plan(config: ExperimentConfig, topology: Topology, what: str, records: list[dict[str, Any]]) -> Plan:
    """A plan from what the compiler said of each program."""
    chip = topology.chip
    peak = chip.bf16_flops if config.model.compute_dtype == "bfloat16" else chip.float32_flops
    plans = []
    for record in records:
        times = None
        if record["compiles"]:
            sent = sum(size * (2 if kind == "all-reduce" else 1) for kind, size in record["collective_bytes"].items())
            network = sent / topology.network
            times = Times(
                compute=record["flops"] / record["chips"] / peak,
                memory=record["bytes"] / chip.hbm_bandwidth,
                network=network,
                compiler=record["cycles"] / chip.clock_hz if chip.clock_hz else None,
            )
        plans.append(
            ProgramPlan(
                record["name"],
                record["chips"],
                record["memory"],
                chip.hbm_bytes,
                record["compiles"],
                record.get("message", ""),
                record["flops"],
                record.get("bytes"),
                record.get("collective_bytes"),
                times,
                record.get("largest", []),
                record.get("unknown_loops", 0),
            )
        )
    start = "random weights"
    if config.model.init:
        start = f"loaded weights ({config.model.init}, which is not read)"
    if config.training.frozen is not None:
        start += f"; training.frozen: {', '.join(config.training.frozen) or 'nothing'}"
    return Plan(topology, what, start, tuple(plans))


def _key(kind: str) -> str:
    return kind.replace(" ", "_")


def _bytes(size: float) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(size) >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} B"


def _si(number: float) -> str:
    for unit, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return f"{number:.0f} "


def _seconds(time: float) -> str:
    return f"{time:.2f} s" if time >= 1 else f"{time * 1e3:.2f} ms" if time >= 1e-3 else f"{time * 1e6:.1f} us"

"""Report of a plan: memory compared with the chip's, FLOPs, traffic, and the resulting time and bottleneck."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.plan.topologies import Topology

Buffer = TypedDict("Buffer", {"bytes": int, "shape": str, "made by": str})


class Launches(TypedDict):
    """What the host starts in one run of a program on a GPU; bodies of loops count as often as they run."""

    kernels: int  # also calls of libraries, and copies
    loop_trips: int
    conditionals: int  # the host waits for the device at each
    conditionals_in_loops: int  # among them


class ProgramRecord(TypedDict):
    """Result of compiling one program; JSON in the answer of the child process."""

    name: str
    chips: int
    flops: int  # of all chips together
    compiles: bool
    memory: dict[str, int]  # HBM bytes per chip, by kind
    message: NotRequired[str]  # the compiler's message, if the program does not compile; otherwise the fields below
    largest: NotRequired[list[Buffer]]
    bytes: NotRequired[int]  # to and from HBM, per chip
    collective_bytes: NotRequired[dict[str, int]]  # over the network, per chip
    cycles: NotRequired[int]
    unknown_loops: NotRequired[int]
    launches: NotRequired[Launches | None]  # None for TPUs, where the host starts a program once


@dataclass(frozen=True)
class Times:
    """Lower bounds in seconds of one run of a program, by resource."""

    compute: float  # FLOPs at the chip's peak rate
    memory: float  # bytes to and from HBM at its bandwidth
    network: float  # bytes over the network; an all-reduce counts twice
    compiler: float | None  # the compiler's own estimate, if it gives one

    @property
    def bound(self) -> str:
        """The resource that takes most time."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))

    @property
    def estimate(self) -> float:
        """The largest lower bound."""
        return max(self.compute, self.memory, self.network, self.compiler or 0.0)


@dataclass(frozen=True)
class ProgramPlan:
    """One compiled program; traffic and times are None if it is too large to compile."""

    name: str
    chips: int
    memory: dict[str, int]  # HBM bytes per chip, by kind
    capacity: int  # HBM bytes of a chip
    compiles: bool
    message: str  # the compiler's message, if the program does not compile
    flops: int  # of all chips together
    bytes: int | None  # to and from HBM, per chip
    collective_bytes: dict[str, int] | None  # over the network, per chip
    times: Times | None
    largest: list[Buffer]
    unknown_loops: int
    launches: Launches | None  # None for TPUs, and if the program does not compile

    @property
    def total(self) -> int:
        """HBM bytes that the program needs on each chip."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the program fits the HBM of a chip."""
        return self.compiles and self.total <= self.capacity

    def record(self) -> dict[str, Any]:
        """Return the record for `--json`."""
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
            "launches": self.launches,
        }

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        verdict = "fits" if self.fits else "does not fit"
        lines = [
            f"{self.name}, {self.chips} chip{'s' * (self.chips > 1)}: {verdict}",
            f"  HBM per chip: {_bytes(self.total)} of {_bytes(self.capacity)}",
            *(f"    {_bytes(size):>10}  {kind}" for kind, size in self.memory.items() if size),
        ]
        if self.largest:
            lines.append("  largest buffers (not all at once)")
            lines += [f"    {_bytes(b['bytes']):>10}  {b['shape']}  {b['made by'][-90:]}" for b in self.largest]
        lines.append(f"  FLOPs: {_si(self.flops)}, {_si(self.flops / self.chips)} per chip")
        if self.times is None or self.bytes is None or self.collective_bytes is None:
            return [*lines, f"  the program does not compile, so traffic and times are unknown: {self.message}"]
        network = ", ".join(f"{kind} {_bytes(size)}" for kind, size in self.collective_bytes.items()) or "none"
        lines += [f"  HBM traffic per chip: {_bytes(self.bytes)}", f"  network per chip: {network}"]
        times = ", ".join(f"{name} {_seconds(getattr(self.times, name))}" for name in ("compute", "memory", "network"))
        own = "" if self.times.compiler is None else f", compiler's estimate {_seconds(self.times.compiler)}"
        lines.append(f"  time: at least {_seconds(self.times.estimate)} ({times}{own}); bound by {self.times.bound}")
        if self.launches:
            counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in self.launches.items())
            lines.append(f"  launches: {counts}")
        if self.unknown_loops:
            lines.append(f"  {self.unknown_loops} loops of unknown length count once")
        return lines


@dataclass(frozen=True)
class HardwarePlan:
    """Memory and time of an experiment on a topology."""

    topology: Topology
    what: str
    start: str  # the weights that the experiment starts from, which determine what trains
    programs: tuple[ProgramPlan, ...]

    @property
    def fits(self) -> bool:
        """Whether every program fits."""
        return all(program.fits for program in self.programs)

    def record(self) -> dict[str, Any]:
        """Return the record for `--json`: the program that needs most memory, and all programs by name."""
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
        """Return the report as lines of text."""
        start = [f"starts from {self.start}"] if self.what == "train" else []
        return [f"{self.topology}", *start, *(line for program in self.programs for line in program.lines())]


def plan_from_records(
    config: ExperimentConfig, topology: Topology, what: str, records: list[ProgramRecord]
) -> HardwarePlan:
    """Return a plan from the compiler's results for each program."""
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
                record.get("launches"),
            )
        )
    start = "random weights"
    if config.model.init:
        start = f"loaded weights ({config.model.init}, which is not read)"
    if config.training.frozen is not None:
        start += f"; training.frozen: {', '.join(config.training.frozen) or 'nothing'}"
    if config.training.lora.rank:
        start += f"; training.lora.rank: {config.training.lora.rank}"
    if config.training.unfreeze_stages:
        start += f"; training.unfreeze_stages: {config.training.unfreeze_stages}"
    return HardwarePlan(topology, what, start, tuple(plans))


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

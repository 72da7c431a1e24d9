"""Cost of a compiled program on one chip: bytes to and from HBM and over the network, cycles, kernel launches.

XLA's `cost_analysis` counts the body of a loop once; here it counts as often as it runs. Arrays that the compiler keeps
in memory on the chip cause no traffic, and an array that is only sliced or updated in place counts with the slice. Of a
conditional, the most expensive branch counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sam2_3dmed_jax.plan.hlo_text import Computation, Instruction, Module, array_bytes

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "partition-id"),
    *("replica-id", "add-dependency", "iota"),
}
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclass
class Cost:
    """Cost of one run on one chip."""

    bytes: int = 0  # to and from HBM
    cycles: int = 0  # the compiler's estimate, which only the TPU compiler gives
    # Bytes over the network by (kind, channel); the parts of one collective in several fusions share a channel.
    collectives: dict[tuple[str, str], int] = field(default_factory=dict)
    unknown_loops: int = 0  # number of loops of unknown length, which count once
    # What the host of a GPU does: each of these takes it microseconds, and a conditional also makes it wait.
    kernels: int = 0  # also calls of libraries, and copies
    loop_trips: int = 0
    conditionals: int = 0
    conditionals_in_loops: int = 0

    def add(self, other: Cost, times: int = 1) -> None:
        """Add another cost, multiplied by `times`."""
        self.bytes += times * other.bytes
        self.cycles += times * other.cycles
        self.unknown_loops += other.unknown_loops
        self.kernels += times * other.kernels
        self.loop_trips += times * other.loop_trips
        self.conditionals += times * other.conditionals
        self.conditionals_in_loops += times * other.conditionals_in_loops
        for key, size in other.collectives.items():
            self.collectives[key] = max(self.collectives.get(key, 0), times * size)

    def by_kind(self) -> dict[str, int]:
        """Return the bytes over the network by kind of collective, only for the kinds that occur."""
        kinds: dict[str, int] = {}
        for (kind, _), size in self.collectives.items():
            kinds[kind] = kinds.get(kind, 0) + size
        return dict(sorted(kinds.items()))


def program_cost(module: Module) -> Cost:
    """Return the cost of a program."""
    return _CostCounter(module).computation_cost(module.entry)


class _CostCounter:
    """Counts the cost of each computation once and adds it wherever the computation is called."""

    def __init__(self, module: Module):
        self.module = module
        self.costs: dict[str, Cost] = {}

    def computation_cost(self, name: str) -> Cost:
        """Return the cost of one run of a computation."""
        if name not in self.costs:
            total = Cost()
            computation = self.module.computations[name]
            for instruction in computation.instructions:
                self._add(total, instruction, computation)
            self.costs[name] = total
        return self.costs[name]

    def _add(self, total: Cost, instruction: Instruction, inside: Computation) -> None:
        opcode = instruction.opcode
        if opcode == "while":
            body = instruction.called("body")
            assert body
            trips = trip_count(self.module, instruction, inside)
            total.unknown_loops += trips is None
            times, cost = 1 if trips is None else trips, self.computation_cost(body)
            total.add(cost, times)
            total.loop_trips += times
            total.conditionals_in_loops += times * (cost.conditionals - cost.conditionals_in_loops)
        elif opcode == "conditional":
            total.add(
                max(
                    (self.computation_cost(branch) for branch in instruction.branches),
                    key=lambda c: (c.cycles, c.bytes, c.kernels),
                )
            )
            total.conditionals += 1
        elif opcode == "call" or (opcode == "async-start" and instruction.called("calls")):
            called = instruction.called("to_apply") or instruction.called("calls")
            assert called
            total.add(self.computation_cost(called))
        elif opcode not in _FREE and not opcode.endswith(("-done", "-update")):
            total.kernels += 1
            total.bytes += _traffic(self.module, instruction, inside)
            cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
            total.cycles += int(cycles[1]) if cycles else 0
            self._add_collectives(total, instruction, inside)

    def _add_collectives(self, total: Cost, instruction: Instruction, inside: Computation, within: str = "") -> None:
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            size = _collective_bytes(instruction, inside)
            if within.startswith("all-reduce-scatter"):  # on TPU: an all-reduce and a slice of its result
                kind = "reduce-scatter"
            key = kind, channel[1] if channel else instruction.name
            total.collectives[key] = max(total.collectives.get(key, 0), size)
        elif called := instruction.opcode == "fusion" and instruction.called("calls"):
            for inner in self.module.computations[called].instructions:
                self._add_collectives(total, inner, self.module.computations[called], called)


def trip_count(module: Module, loop: Instruction, inside: Computation) -> int | None:
    """Return how often a loop runs: XLA's annotation, or else the result of its condition `i < constant`."""
    annotation = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if annotation:
        return int(annotation[1])
    name, body_name = loop.called("condition"), loop.called("body")
    condition = module.computations[name] if name else None
    body = module.computations[body_name] if body_name else None
    if condition is None or body is None or "direction=LT" not in condition.root.attributes:
        return None
    initial = inside.by_name[loop.operands[0]]
    counter, limit = (condition.by_name[operand] for operand in condition.root.operands)
    index, end = _tuple_index(counter), _integer(limit, condition, initial, inside)
    if index is None or end is None or initial.opcode != "tuple":
        return None
    start = _integer(inside.by_name[initial.operands[index]], inside)
    step = _step(body, index)
    return None if start is None or not step else max(-(-(end - start) // step), 0)


def _tuple_index(instruction: Instruction) -> int | None:
    match = re.search(r"index=(\d+)", instruction.attributes) if instruction.opcode == "get-tuple-element" else None
    return int(match[1]) if match else None


def _integer(
    instruction: Instruction,
    inside: Computation,
    loop_input: Instruction | None = None,
    outside: Computation | None = None,
) -> int | None:
    """Return the value of an integer constant, also if it is copied or comes from the input tuple of a loop."""
    while instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = inside.by_name[instruction.operands[0]]
    if instruction.opcode == "constant":
        return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None
    index = _tuple_index(instruction)
    if index is None or loop_input is None or outside is None or loop_input.opcode != "tuple":
        return None
    return _integer(outside.by_name[loop_input.operands[index]], outside)


def _step(body: Computation, index: int) -> int | None:
    """Return the increment of a loop's counter per iteration."""
    if body.root.opcode != "tuple":
        return None
    counter = body.by_name[body.root.operands[index]]
    while counter.opcode in ("copy", "bitcast"):
        counter = body.by_name[counter.operands[0]]
    if counter.opcode != "add":
        return 1  # the addition is inside a fusion; JAX's loops count by one
    steps = [_integer(body.by_name[operand], body) for operand in counter.operands]
    return next((step for step in steps if step is not None), 1)


def _collective_bytes(instruction: Instruction, inside: Computation) -> int:
    """Return the bytes of a collective: the array that a chip sends, or for an all-gather the array that it gets."""
    sent = sum(sum(array_bytes(inside.by_name[name].shape)) for name in instruction.operands)
    if not instruction.opcode.startswith("all-gather"):
        return sent
    return sum(array_bytes(instruction.shape)) - (sent if instruction.opcode == "all-gather-start" else 0)


def _traffic(module: Module, instruction: Instruction, inside: Computation) -> int:
    """Return the bytes that an instruction reads from HBM and writes to it."""
    operands = enumerate(instruction.operands)
    read = [_bytes_read(module, inside.by_name[name], instruction, position) for position, name in operands]
    if instruction.opcode.endswith("-start"):  # its shape also contains its operands
        return sum(read) + max(array_bytes(instruction.shape, hbm_only=True), default=0)
    if instruction.opcode == "fusion":
        called = instruction.called("calls")
        assert called
        written = _bytes_written(module, module.computations[called], None, instruction.shape)
    else:
        shape = instruction.shape
        if instruction.opcode == "custom-call":  # GPU libraries also return a workspace, which is mostly unused
            shape = re.sub(r"\bs8\[", "token[", shape)
        written = _bytes_written(module, inside, instruction, shape)
    return sum(read) + written


def _bytes_read(module: Module, array: Instruction, user: Instruction, position: int) -> int:
    """Return the bytes that `user` reads of `array`, its operand number `position`."""
    whole = sum(array_bytes(array.shape, hbm_only=True))
    if not whole:
        return 0
    if user.opcode in _SLICES and position == 0:
        return min(whole, sum(array_bytes(user.shape)))
    if user.opcode in ("dynamic-update-slice", "scatter") and position == 0:
        return 0
    if user.opcode == "fusion" and (called := user.called("calls")):
        return min(whole, _bytes_read_in_fusion(module, module.computations[called], position))
    return whole


def _bytes_read_in_fusion(module: Module, computation: Computation, number: int) -> int:
    """Return the bytes that a fusion reads of its parameter `number`."""
    return _bytes_read_by_users(module, computation, computation.parameters[number])


def _bytes_read_by_users(module: Module, computation: Computation, array: Instruction) -> int:
    """Return the bytes that the users of an array read of it."""
    total = 0
    for user in computation.users.get(array.name, []):
        position = user.operands.index(array.name)
        if user.opcode in ("bitcast", "reshape"):
            total += _bytes_read_by_users(module, computation, user)
        elif user.opcode in _SLICES and position == 0:
            total += sum(array_bytes(user.shape))
        elif user.opcode == "dynamic-update-slice" and position == 0:
            continue
        elif user.opcode == "fusion" and (called := user.called("calls")):
            total += _bytes_read_in_fusion(module, module.computations[called], position)
        else:
            total += sum(array_bytes(array.shape))
    return total


def _bytes_written(module: Module, inside: Computation, instruction: Instruction | None, shape: str) -> int:
    """Return the bytes written of a result, or of an update in place; `shape` has its memory space."""
    instruction = instruction or inside.root
    while instruction.opcode == "bitcast":
        instruction = inside.by_name[instruction.operands[0]]
    hbm = array_bytes(shape, hbm_only=True)
    if instruction.opcode == "tuple" and len(hbm) == len(instruction.operands):
        parts = (match[0] for match in re.finditer(r"\w+\[[\d,]*\](?:\{[^}]*\})?", shape))
        return sum(
            _bytes_written(module, inside, inside.by_name[name], part)
            for name, part in zip(instruction.operands, parts, strict=True)
        )
    if not sum(hbm):
        return 0
    if instruction.opcode == "fusion" and (called := instruction.called("calls")):
        return min(sum(hbm), _bytes_written(module, module.computations[called], None, shape))
    if instruction.opcode == "dynamic-update-slice":
        return min(sum(hbm), sum(array_bytes(inside.by_name[instruction.operands[1]].shape)))
    return sum(hbm)

"""What a compiled program moves on one chip: bytes to and from HBM, bytes over the network, the compiler's cycles.

XLA's `cost_analysis` counts the body of a loop once; here each counts as often as it runs. Arrays that the compiler
keeps in memory on the chip are no traffic, and of an array that is only sliced or updated in place the slice counts.
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
    """Of one run on one chip."""

    bytes: int = 0  # to and from HBM
    cycles: int = 0  # the compiler's estimate, where it gives one (TPU)
    # Bytes over the network by (kind, channel): parts of one collective that XLA spread over several fusions share it.
    collectives: dict[tuple[str, str], int] = field(default_factory=dict)
    unknown_loops: int = 0  # loops of unknown length, which count once

    def add(self, other: Cost, times: int = 1) -> None:
        """Add what another costs, so many times."""
        self.bytes += times * other.bytes
        self.cycles += times * other.cycles
        self.unknown_loops += other.unknown_loops
        for key, size in other.collectives.items():
            self.collectives[key] = max(self.collectives.get(key, 0), times * size)

    def by_kind(self) -> dict[str, int]:
        """Bytes over the network by kind of collective, without those that there are none of."""
        kinds: dict[str, int] = {}
        for (kind, _), size in self.collectives.items():
            kinds[kind] = kinds.get(kind, 0) + size
        return dict(sorted(kinds.items()))


def cost(module: Module) -> Cost:
    """The cost of a program."""
    return _Walk(module).of(module.entry)


class _Walk:
    def __init__(self, module: Module):
        self.module = module
        self.known: dict[str, Cost] = {}

    def of(self, name: str) -> Cost:
        if name not in self.known:
            total = Cost()
            computation = self.module.computations[name]
            for instruction in computation.instructions:
                self._add(total, instruction, computation)
            self.known[name] = total
        return self.known[name]

    def _add(self, total: Cost, instruction: Instruction, inside: Computation) -> None:
        opcode = instruction.opcode
        if opcode == "while":
            body = instruction.called("body")
            assert body
            turns = trip_count(self.module, instruction, inside)
            total.unknown_loops += turns is None
            total.add(self.of(body), 1 if turns is None else turns)
        elif opcode == "conditional":
            total.add(max((self.of(branch) for branch in instruction.branches), key=lambda c: (c.cycles, c.bytes)))
        elif opcode == "call" or (opcode == "async-start" and instruction.called("calls")):
            called = instruction.called("to_apply") or instruction.called("calls")
            assert called
            total.add(self.of(called))
        elif opcode not in _FREE and not opcode.endswith(("-done", "-update")):
            total.bytes += _traffic(self.module, instruction, inside)
            cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
            total.cycles += int(cycles[1]) if cycles else 0
            self._add_collectives(total, instruction, inside)

    def _add_collectives(self, total: Cost, instruction: Instruction, inside: Computation, within: str = "") -> None:
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            moved = _moved(instruction, inside)
            if within.startswith("all-reduce-scatter"):  # TPU's reduce-scatter: an all-reduce of which a part is kept
                kind = "reduce-scatter"
            key = kind, channel[1] if channel else instruction.name
            total.collectives[key] = max(total.collectives.get(key, 0), moved)
        elif called := instruction.opcode == "fusion" and instruction.called("calls"):
            for inner in self.module.computations[called].instructions:
                self._add_collectives(total, inner, self.module.computations[called], called)


def trip_count(module: Module, loop: Instruction, inside: Computation) -> int | None:
    """How often a loop runs: what XLA says, or else its condition `i < constant` counted from its start."""
    said = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if said:
        return int(said[1])
    name, body_name = loop.called("condition"), loop.called("body")
    condition = module.computations[name] if name else None
    body = module.computations[body_name] if body_name else None
    if condition is None or body is None or "direction=LT" not in condition.root.attributes:
        return None
    given = inside.by_name[loop.operands[0]]
    counter, limit = (condition.by_name[operand] for operand in condition.root.operands)
    index, end = _element(counter), _number(limit, condition, given, inside)
    if index is None or end is None or given.opcode != "tuple":
        return None
    start = _number(inside.by_name[given.operands[index]], inside)
    step = _step(body, index)
    return None if start is None or not step else max(-(-(end - start) // step), 0)


def _element(instruction: Instruction) -> int | None:
    found = re.search(r"index=(\d+)", instruction.attributes) if instruction.opcode == "get-tuple-element" else None
    return int(found[1]) if found else None


def _number(
    instruction: Instruction, inside: Computation, given: Instruction | None = None, outside: Computation | None = None
) -> int | None:
    """An integer constant, also through a copy, or through the tuple that a loop was given."""
    while instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = inside.by_name[instruction.operands[0]]
    if instruction.opcode == "constant":
        return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None
    index = _element(instruction)
    if index is None or given is None or outside is None or given.opcode != "tuple":
        return None
    return _number(outside.by_name[given.operands[index]], outside)


def _step(body: Computation, index: int) -> int | None:
    """By how much a loop's counter grows a turn."""
    if body.root.opcode != "tuple":
        return None
    grown = body.by_name[body.root.operands[index]]
    while grown.opcode in ("copy", "bitcast"):
        grown = body.by_name[grown.operands[0]]
    if grown.opcode != "add":
        return 1  # in a fusion; JAX's loops count by one
    steps = [_number(body.by_name[operand], body) for operand in grown.operands]
    return next((step for step in steps if step is not None), 1)


def _moved(instruction: Instruction, inside: Computation) -> int:
    """What a collective moves: the whole array that a chip gives, or of an all-gather the one that it gets."""
    given = sum(sum(array_bytes(inside.by_name[name].shape)) for name in instruction.operands)
    if not instruction.opcode.startswith("all-gather"):
        return given
    return sum(array_bytes(instruction.shape)) - (given if instruction.opcode == "all-gather-start" else 0)


def _traffic(module: Module, instruction: Instruction, inside: Computation) -> int:
    """Bytes that an instruction reads from HBM and writes to it."""
    places = enumerate(instruction.operands)
    read = [_read(module, inside.by_name[name], instruction, position) for position, name in places]
    if instruction.opcode.endswith("-start"):  # its shape also names what it reads
        return sum(read) + max(array_bytes(instruction.shape, hbm_only=True), default=0)
    if instruction.opcode == "fusion":
        called = instruction.called("calls")
        assert called
        written = _written(module, module.computations[called], None, instruction.shape)
    else:
        shape = instruction.shape
        if instruction.opcode == "custom-call":  # beside its result a GPU library names room to work in, mostly unused
            shape = re.sub(r"\bs8\[", "token[", shape)
        written = _written(module, inside, instruction, shape)
    return sum(read) + written


def _read(module: Module, array: Instruction, user: Instruction, position: int) -> int:
    """What `user` reads of an array that is its operand number `position`."""
    whole = sum(array_bytes(array.shape, hbm_only=True))
    if not whole:
        return 0
    if user.opcode in _SLICES and position == 0:
        return min(whole, sum(array_bytes(user.shape)))
    if user.opcode in ("dynamic-update-slice", "scatter") and position == 0:
        return 0
    if user.opcode == "fusion" and (called := user.called("calls")):
        return min(whole, _read_inside(module, module.computations[called], position))
    return whole


def _read_inside(module: Module, computation: Computation, number: int) -> int:
    """What a fusion reads of its parameter."""
    return _read_by_users(module, computation, computation.parameters[number])


def _read_by_users(module: Module, computation: Computation, array: Instruction) -> int:
    total = 0
    for user in computation.users.get(array.name, []):
        position = user.operands.index(array.name)
        if user.opcode in ("bitcast", "reshape"):
            total += _read_by_users(module, computation, user)
        elif user.opcode in _SLICES and position == 0:
            total += sum(array_bytes(user.shape))
        elif user.opcode == "dynamic-update-slice" and position == 0:
            continue
        elif user.opcode == "fusion" and (called := user.called("calls")):
            total += _read_inside(module, module.computations[called], position)
        else:
            total += sum(array_bytes(array.shape))
    return total


def _written(module: Module, inside: Computation, instruction: Instruction | None, shape: str) -> int:
    """What is written of a result: of an update in place, the update. `shape` says where it lies."""
    instruction = instruction or inside.root
    while instruction.opcode == "bitcast":
        instruction = inside.by_name[instruction.operands[0]]
    hbm = array_bytes(shape, hbm_only=True)
    if instruction.opcode == "tuple" and len(hbm) == len(instruction.operands):
        parts = (match[0] for match in re.finditer(r"\w+\[[\d,]*\](?:\{[^}]*\})?", shape))
        return sum(
            _written(module, inside, inside.by_name[name], part)
            for name, part in zip(instruction.operands, parts, strict=True)
        )
    if not sum(hbm):
        return 0
    if instruction.opcode == "fusion" and (called := instruction.called("calls")):
        return min(sum(hbm), _written(module, module.computations[called], None, shape))
    if instruction.opcode == "dynamic-update-slice":
        return min(sum(hbm), sum(array_bytes(inside.by_name[instruction.operands[1]].shape)))
    return sum(hbm)

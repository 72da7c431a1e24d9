"""Parser of the text of a compiled XLA program: scheduled instructions after fusion and partitioning.

It reads only what costs need: shapes with their memory space, opcodes, operands and attributes. Shapes are per chip.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_BITS = re.compile(r"[a-z]+(\d+)")
_FAST_MEMORY = re.compile(r"S\([1-9]\d*\)")  # any memory space except 0: vector or scalar memory on the chip, not HBM


@dataclass(frozen=True)
class Instruction:
    """One instruction: `name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool
    literal: str  # text between the parentheses of constants and parameters

    def called(self, attribute: str) -> str | None:
        """Return the computation that an attribute (`body`, `calls`, ...) names."""
        match = re.search(rf"\b{attribute}=%([\w.\-]+)", self.attributes)
        return match[1] if match else None

    @cached_property
    def branches(self) -> tuple[str, ...]:
        """The computations of a conditional."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if listed:
            return tuple(_NAME.findall(listed[1]))
        return tuple(name for name in map(self.called, ("true_computation", "false_computation")) if name)

    @cached_property
    def source(self) -> str:
        """JAX's name of the operation that it comes from; for parameters, the name of the argument."""
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return match[1].replace("\\'", "'") if match else ""


@dataclass(frozen=True)
class Computation:
    """A list of instructions in the order in which they run."""

    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """The instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each instruction, by name."""
        users: dict[str, list[Instruction]] = {}
        for instruction in self.instructions:
            for operand in dict.fromkeys(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """The parameters by number."""
        return {int(i.literal): i for i in self.instructions if i.opcode == "parameter"}

    @property
    def root(self) -> Instruction:
        """The instruction whose value is the result."""
        return next(instruction for instruction in self.instructions if instruction.root)


@dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str


def array_bytes(shape: str, hbm_only: bool = False) -> list[int]:
    """Return the bytes of each array of a shape, which may be a tuple; with `hbm_only`, 0 for arrays on the chip."""
    sizes = []
    for dtype, dimensions, layout in _ARRAY.findall(shape):
        count = 1
        for dimension in dimensions.split(","):
            count *= int(dimension or 1)
        bits = _BITS.match(dtype)
        width = 8 if dtype == "pred" else int(bits[1]) if bits else 0  # tokens have no size
        sizes.append(0 if hbm_only and _FAST_MEMORY.search(layout) else -(-count * width // 8))
    return sizes


def parse_module(text: str) -> Module:
    """Parse the text of a compiled module."""
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    lines: list[Instruction] = []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif line.startswith("}"):
            computations[name] = Computation(tuple(lines))
        elif name and line.startswith("  ") and " = " in line:
            lines.append(_instruction(line))
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    left, right = line.strip().split(" = ", 1)
    end = _closing_parenthesis(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].lstrip()
    open_ = rest.index("(")
    close = _closing_parenthesis(rest, open_)
    inside = rest[open_ + 1 : close]
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        shape=shape,
        opcode=rest[:open_],
        operands=tuple(_NAME.findall(inside)),
        attributes=rest[close + 1 :],
        root=left.startswith("ROOT "),
        literal=inside if rest[:open_] in ("constant", "parameter") else "",
    )


def _closing_parenthesis(text: str, start: int) -> int:
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise ValueError(f"closing parenthesis missing in {text[:80]}")

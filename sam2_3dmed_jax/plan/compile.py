"""Lower and compile programs for a topology that is not there, and read what they cost. Runs in a child process.

`python -m sam2_3dmed_jax.plan.compile FOLDER`: reads the request there, writes `answer.json`; see `process`.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.plan import toolchain
from sam2_3dmed_jax.plan.hlo_cost import cost
from sam2_3dmed_jax.plan.hlo_text import Module, array_bytes, parse
from sam2_3dmed_jax.plan.programs import Program, What, programs
from sam2_3dmed_jax.plan.topologies import Topology
from sam2_3dmed_jax.runtime.jaxpr_flops import flops

# From the name of an argument to what it is. The first match decides.
ARGUMENTS = (
    (r"^state\.weights", "trained weights"),
    (r"^state\.(optimizer|step)", "optimizer state"),
    (r"^state\.ema", "averaged weights"),
    (r"^(frozen|weights)", "frozen weights"),
    (r"^bank", "memories"),
    (r".", "batch"),
)
LARGEST = 8  # buffers that are named
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def compile_all(config: ExperimentConfig, what: What, topology: Topology, stage: Callable[[str], None]) -> list[dict]:
    """Compile what there is to compile; one record a program.

    Raises:
        UserError: the compiler is not installed, or settings do not fit the topology or each other.
    """
    toolchain.check(topology)
    return [compile_program(program, topology, stage) for program in programs(config, what, topology.devices())]


def compile_program(program: Program, topology: Topology, stage: Callable[[str], None]) -> dict[str, Any]:
    """Compile one program; returns its record."""
    stage(f"{program.name}: tracing")
    traced = program.trace(*program.arguments.values())
    total = flops(traced.jaxpr)
    record: dict[str, Any] = {"name": program.name, "chips": program.chips, "flops": total}
    stage(f"{program.name}: lowering")
    lowered = traced.lower()
    stage(f"{program.name}: compiling")
    # Triton tilings are chosen by trying them on a GPU, and untried ones can fail: products go to cuBLAS. How well a
    # kernel is optimised changes neither memory nor collectives.
    gpu = {"xla_gpu_enable_triton_gemm": False, "xla_backend_optimization_level": 0}
    options = gpu if topology.chip.platform == "cuda" else None
    try:
        compiled = lowered.compile(compiler_options=options)
    except Exception as error:  # XLA raises one kind for all
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return record | _too_large(str(error), program.arguments)
    stage(f"{program.name}: reading")
    module = parse(compiled.as_text())
    moved = cost(module)
    return record | {
        "compiles": True,
        "memory": _memory(compiled.memory_analysis(), module),
        "largest": _largest(module),
        "bytes": moved.bytes,
        "collective_bytes": moved.by_kind(),
        "cycles": moved.cycles,
        "unknown_loops": moved.unknown_loops,
    }


def _memory(analysis: Any, module: Module) -> dict[str, int]:
    """HBM bytes on a chip by kind; their sum is what the program needs."""
    memory: dict[str, int] = {}
    for parameter in module.computations[module.entry].parameters.values():
        kind = _kind(parameter.source)
        memory[kind] = memory.get(kind, 0) + sum(array_bytes(parameter.shape))
    memory["padding of arguments"] = analysis.argument_size_in_bytes - sum(memory.values())
    memory["temporaries"] = analysis.temp_size_in_bytes
    memory["outputs beside donated arguments"] = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    memory["generated code"] = analysis.generated_code_size_in_bytes
    return memory


def _kind(argument: str) -> str:
    return next(kind for pattern, kind in ARGUMENTS if re.search(pattern, argument or "?"))


def _largest(module: Module) -> list[dict[str, Any]]:
    """The largest arrays that the program makes in HBM; they need not be there at the same time."""
    found: dict[tuple[str, str], int] = {}
    skipped = ("parameter", "tuple", "while", "get-tuple-element", "bitcast", "conditional", "call")
    bodies = [module.entry] + [
        name
        for computation in module.computations.values()
        for instruction in computation.instructions
        for name in (instruction.called("body"), *instruction.branches)
        if name
    ]
    for name in bodies:
        for instruction in module.computations[name].instructions:
            size = max(array_bytes(instruction.shape, hbm_only=True), default=0)
            if instruction.opcode not in skipped and size:
                found[re.sub(r"\{.*?\}", "", instruction.shape)[:80], instruction.source] = size
    largest = sorted(found.items(), key=lambda item: -item[1])[:LARGEST]
    return [{"bytes": size, "shape": shape, "made by": source} for (shape, source), size in largest]


def _too_large(message: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What XLA says of a program that does not fit: how much it needs, but neither traffic nor time."""
    memory: dict[str, int] = {}
    for name, tree in arguments.items():
        for path, argument in jax.tree_util.tree_leaves_with_path(tree):
            kind = _kind(name + jax.tree_util.keystr(path))
            size = math.prod(argument.sharding.shard_shape(argument.shape)) * argument.dtype.itemsize
            memory[kind] = memory.get(kind, 0) + size
    temporaries = re.search(r"temporaries \(([\d.]+)([KMGT]?)", message)
    used = temporaries or re.search(r"[Uu]sed ([\d.]+)([KMGT]?)", message)
    if used:
        size = round(float(used[1]) * _UNITS[used[2]])
        # What is "used" in all includes the arguments.
        memory["temporaries"] = size if temporaries else max(size - sum(memory.values()), 0)
    return {"compiles": False, "message": message.splitlines()[0][:400], "memory": memory}


def main(folder: Path) -> None:
    """Answer the request in a folder."""
    config, what, topology = pickle.loads((folder / "request").read_bytes())
    try:
        answer: dict[str, Any] = {
            "programs": compile_all(config, what, topology, lambda text: print(f"stage {text}", flush=True))
        }
    except UserError as error:
        answer = {"error": str(error)}
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

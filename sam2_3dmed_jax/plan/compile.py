"""Compilation of an experiment's programs for hardware that need not exist, and their costs; runs in a child process.

`python -m sam2_3dmed_jax.plan.compile FOLDER` reads the request from the folder and writes `answer.json` to it; see
`process.py`.
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
from sam2_3dmed_jax.plan.hlo_cost import Cost, program_cost
from sam2_3dmed_jax.plan.hlo_text import Module, array_bytes, parse_module
from sam2_3dmed_jax.plan.programs import Program, Workload, programs_to_compile
from sam2_3dmed_jax.plan.report import Buffer, Launches, ProgramRecord
from sam2_3dmed_jax.plan.target import target_chip
from sam2_3dmed_jax.plan.topologies import Topology
from sam2_3dmed_jax.runtime.jaxpr_flops import flops

# From the name of an argument to the kind of memory that it takes. The first match decides.
MEMORY_KINDS = (
    (r"^state\.weights", "trained weights"),
    (r"^state\.(optimizer|step)", "optimizer state"),
    (r"^state\.ema", "averaged weights"),
    (r"^(frozen|weights)", "frozen weights"),
    (r"^bank", "memories"),
    (r".", "batch"),
)
LARGEST_BUFFERS = 8  # number of buffers in the report
# Triton tilings are tuned by running them on a GPU, and untuned ones can fail, so products use cuBLAS. The optimisation
# level of kernels changes neither memory, collectives nor the number of kernels.
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_backend_optimization_level": 0}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def compile_all(
    config: ExperimentConfig, workload: Workload, topology: Topology, stage: Callable[[str], None]
) -> list[ProgramRecord]:
    """Compile the programs of a workload; return one record per program.

    Raises:
        UserError: the compiler is not installed, or the settings do not fit the topology or each other.
    """
    toolchain.check(topology)
    programs = programs_to_compile(config, workload, topology.devices())
    return [compile_program(program, topology, stage) for program in programs]


def compile_program(program: Program, topology: Topology, stage: Callable[[str], None]) -> ProgramRecord:
    """Compile one program and return its record."""
    with target_chip(topology.chip):
        stage(f"{program.name}: tracing")
        traced = program.trace(*program.arguments.values())
        total_flops = flops(traced.jaxpr, topology.chip.platform)
        stage(f"{program.name}: lowering")
        lowered = traced.lower()
    stage(f"{program.name}: compiling")
    options = GPU_OPTIONS if topology.chip.platform == "cuda" else None
    try:
        compiled = lowered.compile(compiler_options=options)
    except Exception as error:  # XLA raises one type for all errors
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {
            "name": program.name,
            "chips": program.chips,
            "flops": total_flops,
            "compiles": False,
            "message": str(error).splitlines()[0][:400],
            "memory": _memory_from_error(str(error), program.arguments),
        }
    stage(f"{program.name}: reading")
    module = parse_module(compiled.as_text())
    cost = program_cost(module)
    return {
        "name": program.name,
        "chips": program.chips,
        "flops": total_flops,
        "compiles": True,
        "memory": _memory(compiled.memory_analysis(), module),
        "largest": _largest_buffers(module),
        "bytes": cost.bytes,
        "collective_bytes": cost.by_kind(),
        "cycles": cost.cycles,
        "unknown_loops": cost.unknown_loops,
        "launches": _launches(cost) if topology.chip.platform == "cuda" else None,
    }


def _launches(cost: Cost) -> Launches:
    return {
        "kernels": cost.kernels,
        "loop_trips": cost.loop_trips,
        "conditionals": cost.conditionals,
        "conditionals_in_loops": cost.conditionals_in_loops,
    }


def _memory(analysis: Any, module: Module) -> dict[str, int]:
    """Return the HBM bytes per chip by kind; their sum is the program's need."""
    memory: dict[str, int] = {}
    for parameter in module.computations[module.entry].parameters.values():
        kind = _kind(parameter.source)
        memory[kind] = memory.get(kind, 0) + sum(array_bytes(parameter.shape))
    memory["padding of arguments"] = analysis.argument_size_in_bytes - sum(memory.values())
    memory["temporaries"] = analysis.temp_size_in_bytes
    memory["outputs besides donated arguments"] = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    memory["generated code"] = analysis.generated_code_size_in_bytes
    return memory


def _kind(argument: str) -> str:
    return next(kind for pattern, kind in MEMORY_KINDS if re.search(pattern, argument or "?"))


def _largest_buffers(module: Module) -> list[Buffer]:
    """Return the largest arrays that the program computes in HBM; they need not exist at the same time."""
    sizes: dict[tuple[str, str], int] = {}
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
                sizes[re.sub(r"\{.*?\}", "", instruction.shape)[:80], instruction.source] = size
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:LARGEST_BUFFERS]
    return [{"bytes": size, "shape": shape, "made by": source} for (shape, source), size in largest]


def _memory_from_error(message: str, arguments: dict[str, Any]) -> dict[str, int]:
    """Return the HBM bytes per chip by kind of a program that does not fit, from XLA's error message."""
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
        # "Used" memory includes the arguments.
        memory["temporaries"] = size if temporaries else max(size - sum(memory.values()), 0)
    return memory


def main(folder: Path) -> None:
    """Answer the request in a folder."""
    config, workload, topology = pickle.loads((folder / "request").read_bytes())
    try:
        answer: dict[str, Any] = {
            "programs": compile_all(config, workload, topology, lambda text: print(f"stage {text}", flush=True))
        }
    except UserError as error:
        answer = {"error": str(error)}
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

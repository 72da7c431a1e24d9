"""Cost of a propagated slice under each memory selection.

    python -m experiments.benchmarks.memory_selection --preset nano --image-size 96

Blocks of 16 slices are propagated with weights and features of random numbers, with all memories in use. The rules take
turns, and each row has its smallest time: CPU time of all threads, which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.inference.abstract_arguments import block_arguments
from sam2_3dmed_jax.inference.compiled_programs import propagate_block
from sam2_3dmed_jax.inference.feature_store import BLOCK
from sam2_3dmed_jax.model.build import abstract_model, architecture, random_weights
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank
from sam2_3dmed_jax.sam2.memory_selection import MEMORY_RULES


@dataclass
class Program:
    """The compiled block of one rule, its arguments, and what it costs."""

    compiled: Any
    arguments: Any
    bank_bytes: int
    milliseconds: list[float]


def program_of(config: ModelConfig, objects: int) -> Program:
    """Compile the block of a model with `objects` objects on random features."""
    rng = np.random.default_rng(0)
    sam2 = architecture(config)
    graphdef, weights = abstract_model(config)[0], random_weights(config, 0)
    _, shapes = block_arguments(graphdef, weights, sam2, objects, 1, jnp.float32)
    bank, steps, direction, depth = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    bank = MemoryBank.empty(sam2, objects, 1)
    features = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), steps.features)
    index = jnp.broadcast_to(jnp.arange(1, BLOCK + 1)[:, None], (BLOCK, objects)).astype(jnp.int32)
    steps = replace_fields(steps, features=features, slice_index=index, active=jnp.ones((BLOCK, objects), bool))
    compiled = propagate_block.lower(graphdef, weights, bank, steps, direction, depth).compile()
    bank_bytes = sum(x.nbytes for x in jax.tree.leaves(bank.recent))
    bank, _ = compiled(weights, bank, steps, direction + 1, depth + 100)  # all memories are in use from now on
    later = replace_fields(steps, slice_index=index + BLOCK)
    return Program(compiled, (weights, bank, later, direction + 1, depth + 100), bank_bytes, [])


def replace_fields(record: Any, **fields: Any) -> Any:
    """Return a named tuple with other fields."""
    return record._replace(**fields)


def main() -> None:
    """Print one row per rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    base = ModelConfig(options.preset, options.image_size, srpp=False, bd=False)
    programs = {rule: program_of(replace(base, memory_selection=rule), options.objects) for rule in MEMORY_RULES}
    for _ in range(options.repeats):
        for program in programs.values():
            weights, bank, *rest = program.arguments
            bank = jax.block_until_ready(jax.tree.map(jnp.copy, bank))  # the block takes its buffers
            begin = time.process_time()
            jax.block_until_ready(program.compiled(weights, bank, *rest))
            program.milliseconds.append(1000 * (time.process_time() - begin) / BLOCK)
    print(f"{options.preset} at {options.image_size} px, {options.objects} object(s), float32\n")
    print("| memory selection | CPU ms per slice | memories and pointers, KiB |")
    print("|---|---|---|")
    for rule, program in programs.items():
        print(f"| {rule} | {min(program.milliseconds):.2f} | {program.bank_bytes / 1024:.0f} |")


if __name__ == "__main__":
    main()

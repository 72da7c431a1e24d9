"""Compilation of the encoder, memory attention and the train step by XLA's TPU compiler; no TPU is needed.

    python -m experiments.benchmarks.tpu [--presets sam2.1_hiera_tiny sam2.1_hiera_large] [--image-size 1024]
        [--work encoder attention train] [--attention flash blocked] [--topology v5e:1x1]

prints FLOPs, HBM traffic, memory, the compiler's estimate of the time, and the share of the chip's peak FLOP/s that the
estimate implies. `blocked` is attention by XLA's own matrix products, as on other platforms, and shows the benefit of
the kernel. `[N, M] in HBM` reports whether any buffer of memory attention is large enough for all attention scores.
"""

import argparse
import os
import sys
from dataclasses import replace
from typing import Any

from sam2_3dmed_jax.plan.toolchain import ENVIRONMENT, check

os.environ.update(ENVIRONMENT)  # before JAX is imported: the compilers do not look for hardware

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from experiments.benchmarks.pytorch.memory_attention import MEMORIES, POINTERS
from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, TrainingConfig
from sam2_3dmed_jax.model.build import abstract_model
from sam2_3dmed_jax.plan.compile import compile_program
from sam2_3dmed_jax.plan.programs import Program, programs_to_compile
from sam2_3dmed_jax.plan.report import ProgramPlan, plan_from_records
from sam2_3dmed_jax.plan.topologies import Topology, parse_topology
from sam2_3dmed_jax.sam2 import flash_attention
from sam2_3dmed_jax.sam2.memory_attention import MemoryTokens
from sam2_3dmed_jax.sam2.parameters import merge
from sam2_3dmed_jax.sam2.presets import preset_config

WORK = ("encoder", "attention", "train")
FITS = flash_attention.fits


def experiment(preset: str, image_size: int, slices: int) -> ExperimentConfig:
    """Return the settings of the experiments: a frozen encoder, bfloat16, rematerialisation of slices."""
    return ExperimentConfig(
        model=ModelConfig(preset, image_size, init="pretrained", compute_dtype="bfloat16"),
        data=DataConfig(slices=slices),
        training=TrainingConfig(remat_slices="all"),
    )


def attention(config: ExperimentConfig, device: Any) -> Program:
    """Return the program of one slice of one object that attends to a full memory bank."""
    graphdef, weights = abstract_model(config.model)
    sharding = SingleDeviceSharding(device)
    sam2 = preset_config(config.model.preset, config.model.image_size)
    side = config.model.image_size // 16
    keys = MEMORIES * side * side + POINTERS

    def shaped(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    @jax.jit
    def attend(weights: Any, embedding: jax.Array, tokens: jax.Array, position: jax.Array) -> jax.Array:
        memory = MemoryTokens(tokens, position, jnp.ones(tokens.shape[:2], bool), POINTERS)
        return merge(graphdef, weights).condition_on_memory(embedding, memory)

    arguments = {
        "weights": jax.tree.map(lambda x: shaped(x.shape, x.dtype), weights),
        "embedding": shaped((1, side, side, sam2.d_model), jnp.bfloat16),
        "tokens": shaped((1, keys, sam2.mem_dim), jnp.bfloat16),
        "position": shaped((1, keys, sam2.mem_dim), jnp.float32),
    }
    return Program("memory attention, one slice", attend.trace, arguments, 1)


def program_of(work: str, config: ExperimentConfig, topology: Topology) -> Program:
    """Return the program of a kind of work."""
    devices = topology.devices()
    if work == "attention":
        return attention(config, devices[0])
    return programs_to_compile(config, "predict" if work == "encoder" else "train", devices)[0]


def row(work: str, plan: ProgramPlan, topology: Topology, image_size: int) -> str:
    """Return the cells of a row of the table."""
    if plan.times is None or plan.bytes is None:
        return f"{plan.flops / 1e12:.2f} | | {plan.total / 2**30:.2f} | does not fit | | |"
    seconds = plan.times.estimate
    queries = (image_size // 16) ** 2
    scores = 2 * queries * MEMORIES * queries  # bytes in bfloat16, of one object
    share = plan.flops / plan.chips / seconds / topology.chip.bf16_flops
    stores_scores = ""
    if work == "attention":  # in other programs, the images of a block of slices are as large
        stores_scores = "yes" if any(buffer["bytes"] >= scores for buffer in plan.largest) else "no"
    return (
        f"{plan.flops / 1e12:.2f} | {plan.bytes / 2**30:.2f} | {plan.total / 2**30:.2f} | {seconds * 1e3:.1f} | "
        f"{share:.0%} | {plan.times.bound} | {stores_scores}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["sam2.1_hiera_tiny", "sam2.1_hiera_large"])
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--slices", type=int, default=12, help="D of the train step; default: %(default)s")
    parser.add_argument("--work", nargs="+", choices=WORK, default=WORK)
    parser.add_argument("--attention", nargs="+", choices=("flash", "blocked"), default=("flash", "blocked"))
    parser.add_argument("--topology", default="v5e:1x1")
    options = parser.parse_args()
    topology = parse_topology(options.topology)
    check(topology)
    print(f"{topology}, {options.image_size} px, bfloat16, D = {options.slices}\n")
    columns = ("TFLOP", "HBM traffic, GiB", "HBM, GiB", "ms", "of the peak", "bound", "[N, M] in HBM")
    print(f"| program | preset | attention | {' | '.join(columns)} |")
    print(f"|---|---|---|{'---|' * len(columns)}", flush=True)
    for work in options.work:
        for preset in options.presets:
            for kind in options.attention:
                flash_attention.fits = FITS if kind == "flash" else lambda n, d: False
                jax.clear_caches()
                config = experiment(preset, options.image_size, options.slices)
                config = config.replace(training=replace(config.training, batch_size=topology.chips))
                program = program_of(work, config, topology)
                record = compile_program(program, topology, lambda text: print(text, file=sys.stderr, flush=True))
                (plan,) = plan_from_records(config, topology, "train", [record]).programs
                cells = row(work, plan, topology, options.image_size)
                print(f"| {plan.name} | {preset} | {kind} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

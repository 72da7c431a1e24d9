"""Programs compiled for GPUs that need not exist, with budgets of launches; skipped without `[plan-gpu]`."""

import json
import os
import subprocess
import sys

import jax
import pytest

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, TrainingConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.plan import toolchain
from sam2_3dmed_jax.plan.process import plan_experiment
from sam2_3dmed_jax.plan.topologies import parse_topology
from tests.plan.test_tpu import experiment

# Each takes the host of a GPU some microseconds. docs/explanation/gpu.md has the counts.
KERNELS_PER_BLOCK = 8_000  # propagation through 16 slices
KERNELS_PER_STEP = 26_000  # train step of a clip of 12 slices

ATTENTION = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from sam2_3dmed_jax.plan.compile import GPU_OPTIONS
from sam2_3dmed_jax.plan.hlo_text import parse_module
from sam2_3dmed_jax.plan.target import target_chip
from sam2_3dmed_jax.plan.topologies import parse_topology
from sam2_3dmed_jax.sam2.attention import attend

topology = parse_topology(sys.argv[1])
on_chip = SingleDeviceSharding(topology.devices()[0])

def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=on_chip)

def loss(q, k, v, valid):
    return attend(q, k, v, valid).astype(jnp.float32).sum()

def kernel_calls(function):
    # Memory attention of tiny at 1024 px: one head, 7 memories and 64 pointer tokens, values with 64 channels.
    keys = 7 * 4096 + 64
    operands = array(1, 4096, 1, 256), array(1, keys, 1, 256), array(1, keys, 1, 64), array(1, keys, dtype=bool)
    with target_chip(topology.chip):
        lowered = jax.jit(function).trace(*operands).lower()
    module = parse_module(lowered.compile(compiler_options=GPU_OPTIONS).as_text())
    instructions = [i for computation in module.computations.values() for i in computation.instructions]
    return sum(i.opcode == "custom-call" and "triton" in i.attributes for i in instructions)

print(json.dumps([kernel_calls(attend), kernel_calls(jax.grad(loss, (0, 1, 2)))]))
"""


@pytest.fixture(scope="module", autouse=True)
def gpu_compiler():
    """Skip the tests where the compiler is not installed, unless it is required."""
    try:
        toolchain.check(parse_topology("h100:4"))
    except UserError as missing:
        if os.environ.get("SAM2_3DMED_REQUIRE_PLAN_GPU"):
            raise
        pytest.skip(str(missing))


def tiny(slices: int) -> ExperimentConfig:
    """Return SAM2-3dMed with the official tiny model at its own size; its image encoder is frozen."""
    return ExperimentConfig(
        model=ModelConfig("sam2.1_hiera_tiny", 1024, init="sam2.1_hiera_tiny", compute_dtype="bfloat16"),
        data=DataConfig(slices=slices),
        training=TrainingConfig(batch_size=1),
    )


def test_memory_and_collectives_come_from_xlas_gpu_compiler():
    record = plan_experiment(experiment(2), "h100:4").record()
    memory = dict(record["hbm_bytes_per_chip"])
    assert memory.pop("total") == sum(memory.values())
    assert record["fits"] and record["hbm_capacity_bytes"] == 84942979072
    assert record["collective_bytes_per_chip"]["all-reduce"] >= 0.5 * memory["trained_weights"]
    assert record["seconds"]["compiler"] is None and record["seconds"]["compute"] > 0


@pytest.mark.parametrize("chip", ["h100", "a100"])
def test_memory_attention_is_one_kernel_and_with_its_gradients_three(chip):
    child = subprocess.run(
        [sys.executable, "-c", ATTENTION, f"{chip}:1"],
        env={**os.environ, **toolchain.ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    assert json.loads(child.stdout.splitlines()[-1]) == [1, 3]  # backward: one for queries, one for keys and values


@pytest.mark.parametrize("chip", ["h100", "a100"])
def test_a_block_of_propagation_starts_few_kernels_and_waits_for_no_conditional(chip):
    programs = plan_experiment(tiny(2), f"{chip}:1", "predict").record()["programs"]
    launches = programs["propagate 16 slices"]["launches"]
    assert launches["conditionals_in_loops"] == 0
    assert launches["kernels"] <= KERNELS_PER_BLOCK
    assert launches["loop_trips"] == 16  # over the slices alone


# Each takes two minutes, so CI compiles one of them with each version of jax.
EARLIER_JAX = jax.__version_info__ < (0, 12)


@pytest.mark.parametrize(
    "chip",
    [
        pytest.param("h100", marks=() if EARLIER_JAX else pytest.mark.long),
        pytest.param("a100", marks=pytest.mark.long if EARLIER_JAX else ()),
    ],
)
def test_a_train_step_starts_few_kernels_and_waits_for_no_conditional(chip):
    launches = plan_experiment(tiny(12), f"{chip}:1").record()["launches"]
    assert launches["conditionals_in_loops"] == 0
    assert launches["kernels"] <= KERNELS_PER_STEP

"""The train step compiled for GPUs that need not exist; skipped without the `[plan-gpu]` extra."""

import os

import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.plan import toolchain
from sam2_3dmed_jax.plan.process import plan_experiment
from sam2_3dmed_jax.plan.topologies import parse_topology
from tests.plan.test_tpu import experiment


def test_memory_and_collectives_come_from_xlas_gpu_compiler():
    try:
        toolchain.check(parse_topology("h100:4"))
    except UserError as missing:
        if os.environ.get("SAM2_3DMED_REQUIRE_PLAN_GPU"):
            raise
        pytest.skip(str(missing))
    record = plan_experiment(experiment(2), "h100:4").record()
    memory = dict(record["hbm_bytes_per_chip"])
    assert memory.pop("total") == sum(memory.values())
    assert record["fits"] and record["hbm_capacity_bytes"] == 84942979072
    assert record["collective_bytes_per_chip"]["all-reduce"] >= 0.5 * memory["trained_weights"]
    assert record["seconds"]["compiler"] is None and record["seconds"]["compute"] > 0

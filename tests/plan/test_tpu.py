"""The train step compiled for TPUs that need not exist: FLOPs and traffic grow with the number of slices."""

import os
import subprocess
import sys

import pytest

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, TrainingConfig
from sam2_3dmed_jax.plan.process import plan_experiment
from sam2_3dmed_jax.plan.toolchain import ENVIRONMENT

pytestmark = pytest.mark.slow


def experiment(slices: int) -> ExperimentConfig:
    """Return a nano model of which few weights train, which compiles faster."""
    return ExperimentConfig(
        model=ModelConfig("nano", 64, srpp=False, bd=False, compute_dtype="bfloat16"),
        data=DataConfig(slices=slices),
        training=TrainingConfig(batch_size=4, frozen=(r"^(image_encoder|sam_prompt_encoder|memory_|mask_down)",)),
    )


@pytest.fixture(scope="module")
def records():
    return {slices: plan_experiment(experiment(slices), "v5e:2x2").record() for slices in (2, 12)}


def test_memory_is_reported_by_kind_and_adds_up_to_the_total(records):
    for record in records.values():
        memory = dict(record["hbm_bytes_per_chip"])
        assert memory.pop("total") == sum(memory.values())
        assert {"trained_weights", "frozen_weights", "optimizer_state", "batch", "temporaries"} <= set(memory)
        assert min(memory.values()) >= 0
        # Two float32 moments per trained parameter, and two step counts.
        assert 0 <= memory["optimizer_state"] - 2 * memory["trained_weights"] <= 64
        assert record["fits"] and record["hbm_capacity_bytes"] == 16 << 30


def test_twelve_slices_take_about_six_times_the_flops_and_traffic_of_two(records):
    two, twelve = records[2], records[12]
    assert two["loops_of_unknown_length"] == twelve["loops_of_unknown_length"] == 0
    # Encoding and decoding are per slice; memory attention also grows with the number of memories.
    assert 5 < twelve["flops"] / two["flops"] < 8
    assert 5 < twelve["seconds"]["compiler"] / two["seconds"]["compiler"] < 8
    # Most traffic of such a small model is the optimizer's, which does not grow; a slice stays on the chip.
    assert 1 < twelve["hbm_traffic_bytes_per_chip"] / two["hbm_traffic_bytes_per_chip"] < 8
    # Gradients are summed once per step, independent of the number of slices.
    sums = [record["collective_bytes_per_chip"]["all-reduce"] for record in (two, twelve)]
    assert sums[0] <= sums[1] < 4 * sums[0]


def test_times_follow_from_the_chips_rates_and_determine_the_bottleneck(records):
    times = dict(records[2]["seconds"])
    assert times["compute"] == pytest.approx(records[2]["flops"] / 4 / 197e12)
    assert times["estimate"] == max(times.values())
    parts = {name: times[name] for name in ("compute", "memory", "network")}
    assert parts[records[2]["bound"]] == max(parts.values())


SLICES = {"v5e:1x1": 1, "v5e:1x2": 2, "v6e:4x4": 16, "v5p:2x1x1": 2, "v5p:2x2x4": 16}
DEVICES = f"""
from sam2_3dmed_jax.plan.topologies import parse_topology

for text in {list(SLICES)}:
    devices = parse_topology(text).devices()
    print(text, len(devices), {{device.device_kind for device in devices}} == {{parse_topology(text).chip.kind}})
"""


def test_a_topology_has_one_device_per_chip_with_the_kind_of_a_real_run():
    printed = subprocess.run(
        [sys.executable, "-c", DEVICES], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True
    )
    assert [line.split() for line in printed.stdout.splitlines()] == [
        [text, str(chips), "True"] for text, chips in SLICES.items()
    ], printed.stderr

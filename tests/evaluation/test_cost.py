"""Cost of a result: whether a case compiled, which values are averaged, and what is known of pooled results."""

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax import VolumePredictor, new_model
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.cost import UNKNOWN, Meter, fixed_cost, summarise_cost
from sam2_3dmed_jax.model.checkpoint import without_boundary
from sam2_3dmed_jax.sam2.parameters import split


def case(name: str, seconds: float, compiled: str = "no", **more: object) -> dict:
    return {"case": name, "class": "a", "seed": "", "seconds": seconds, "compiled": compiled, "tflops": 2.0, **more}


def test_only_the_first_case_of_a_shape_is_reported_as_compiled():
    program = jax.jit(lambda x: jnp.tanh(x) @ x)

    def measured(size: int) -> dict:
        with Meter() as meter:
            program(np.ones((size, size), np.float32)).block_until_ready()
        return meter.columns(3 * 10**12)

    cost = [measured(7), measured(7), measured(8)]
    assert [columns["compiled"] for columns in cost] == ["yes", "no", "yes"]
    assert all(columns["seconds"] > 0 and columns["tflops"] == 3 for columns in cost)
    assert cost[0].keys() == UNKNOWN.keys()


def test_the_peak_memory_is_of_the_work_inside_and_not_of_earlier_work():
    program = (  # in a separate process: this one may keep its heap
        "import numpy as np; from sam2_3dmed_jax.runtime import host_memory as memory\n"
        "for mib in (1, 256, 1): memory.reset_peak(); np.ones(mib << 17).sum(); print(memory.peak_bytes() >> 20)"
    )
    small, large, again = map(int, subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert large - small > 200 and large - again > 200 and small > 20


def test_seconds_are_over_cases_that_did_not_compile_and_each_case_counts_once():
    rows = [case("a", 9.0, "yes"), case("b", 1.0), {**case("b", 1.0), "class": "other"}, case("c", 2.0)]
    cost = summarise_cost(rows)
    assert cost["seconds_a_volume"]["mean"] == 1.5 and cost["seconds_a_volume"]["n"] == 2 and cost["compiling"] == 1
    assert cost["tflops_a_volume"]["mean"] == 2 and cost["tflops_a_volume"]["n"] == 3
    assert cost["peak_host_mib"] is None and cost["parameters"] is None
    assert summarise_cost(rows[:1])["seconds_a_volume"]["mean"] is None  # only the compiling case


def test_files_without_measurements_have_no_cost():
    assert summarise_cost([{"case": "a", "seed": "", **UNKNOWN}]) is None


def test_pooled_results_keep_equal_values_and_the_largest_peak():
    rows = [case("a", 1.0, peak_host_mib=5.0), case("b", 1.0, peak_host_mib=7.0, peak_device_mib=math.nan)]
    fixed = [{"parameters": {"total": 3}, "machine": "x"}, {"parameters": {"total": 3}, "machine": "y"}]
    cost = summarise_cost(rows, fixed)
    assert (cost["parameters"], cost["machine"]) == ({"total": 3}, None)
    assert (cost["peak_host_mib"], cost["peak_device_mib"]) == (7, None)


def test_parameters_add_up_and_a_branch_that_is_left_out_has_none():
    model = new_model("nano", 64, with_3dmed=True)
    whole = fixed_cost(VolumePredictor(model))["parameters"]
    assert whole["total"] == sum(whole["parts"].values()) == sum(x.size for x in split(model)[1].values())
    assert whole["srpp"] > 0 and whole["bd"] == sum(x.size for x in split(model.boundary)[1].values())
    without = fixed_cost(VolumePredictor(without_boundary(model)))["parameters"]
    assert without["bd"] == 0 and without["total"] == whole["total"] - whole["bd"]
    with pytest.raises(UserError, match="no boundary branch"):
        without_boundary(new_model("nano", 64))

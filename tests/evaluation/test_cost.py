"""What a result costs: when a case compiled, what is averaged, and what is known of pooled results."""

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


def test_a_case_that_compiled_is_told_and_the_next_of_its_shape_is_not():
    program = jax.jit(lambda x: jnp.tanh(x) @ x)

    def measured(size: int) -> dict:
        with Meter() as meter:
            program(np.ones((size, size), np.float32)).block_until_ready()
        return meter.columns(3 * 10**12)

    found = [measured(7), measured(7), measured(8)]
    assert [columns["compiled"] for columns in found] == ["yes", "no", "yes"]
    assert all(columns["seconds"] > 0 and columns["tflops"] == 3 for columns in found)
    assert found[0].keys() == UNKNOWN.keys()


def test_the_peak_is_that_of_the_work_inside_and_not_of_what_was_before():
    program = (  # in a process of its own: in this one the heap may be kept
        "import numpy as np; from sam2_3dmed_jax import host_memory as memory\n"
        "for mib in (1, 256, 1): memory.forget_peak(); np.ones(mib << 17).sum(); print(memory.peak() >> 20)"
    )
    small, large, again = map(int, subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert large - small > 200 and large - again > 200 and small > 20


def test_seconds_are_those_of_cases_that_did_not_compile_and_each_case_counts_once():
    rows = [case("a", 9.0, "yes"), case("b", 1.0), {**case("b", 1.0), "class": "other"}, case("c", 2.0)]
    found = summarise_cost(rows)
    assert found["seconds_a_volume"]["mean"] == 1.5 and found["seconds_a_volume"]["n"] == 2 and found["compiling"] == 1
    assert found["tflops_a_volume"]["mean"] == 2 and found["tflops_a_volume"]["n"] == 3
    assert found["peak_host_mib"] is None and found["parameters"] is None
    assert summarise_cost(rows[:1])["seconds_a_volume"]["mean"] is None  # none but the compiling one


def test_files_that_tell_nothing_have_no_cost():
    assert summarise_cost([{"case": "a", "seed": "", **UNKNOWN}]) is None


def test_pooled_results_keep_what_is_alike_and_the_largest_peak():
    rows = [case("a", 1.0, peak_host_mib=5.0), case("b", 1.0, peak_host_mib=7.0, peak_device_mib=math.nan)]
    fixed = [{"parameters": {"total": 3}, "machine": "x"}, {"parameters": {"total": 3}, "machine": "y"}]
    found = summarise_cost(rows, fixed)
    assert (found["parameters"], found["machine"]) == ({"total": 3}, None)
    assert (found["peak_host_mib"], found["peak_device_mib"]) == (7, None)


def test_parameters_add_up_and_a_branch_that_is_left_out_has_none():
    model = new_model("nano", 64, with_3dmed=True)
    whole = fixed_cost(VolumePredictor(model))["parameters"]
    assert whole["total"] == sum(whole["parts"].values()) == sum(x.size for x in split(model)[1].values())
    assert whole["srpp"] > 0 and whole["bd"] == sum(x.size for x in split(model.boundary)[1].values())
    without = fixed_cost(VolumePredictor(without_boundary(model)))["parameters"]
    assert without["bd"] == 0 and without["total"] == whole["total"] - whole["bd"]
    with pytest.raises(UserError, match="no boundary branch"):
        without_boundary(new_model("nano", 64))

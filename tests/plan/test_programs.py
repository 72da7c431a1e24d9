"""Prediction's two programs are those of `inference`, with abstract arguments that they take."""

import jax

from sam2_3dmed_jax.plan.programs import programs
from sam2_3dmed_jax.runtime.jaxpr_flops import flops
from tests.plan.test_tpu import experiment


def test_the_programs_of_prediction_trace_with_abstract_arguments_and_have_work_to_do():
    found = programs(experiment(2), "predict", jax.devices())
    assert [program.name for program in found] == ["encode 16 slices", "walk 16 slices"]
    for program in found:
        assert flops(program.trace(*program.arguments.values()).jaxpr) > 16 * 10**6

"""The two programs of a prediction are those of `inference`, with matching abstract arguments."""

import jax

from sam2_3dmed_jax.plan.programs import programs_to_compile
from sam2_3dmed_jax.runtime.jaxpr_flops import flops
from tests.plan.test_tpu import experiment


def test_the_programs_of_a_prediction_trace_with_abstract_arguments_and_have_flops():
    programs = programs_to_compile(experiment(2), "predict", jax.devices())
    assert [program.name for program in programs] == ["encode 16 slices", "propagate 16 slices"]
    for program in programs:
        assert flops(program.trace(*program.arguments.values()).jaxpr) > 16 * 10**6

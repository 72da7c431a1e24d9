"""The two programs of a prediction are those of `inference`, with matching abstract arguments."""

from dataclasses import replace

import jax

from sam2_3dmed_jax.plan.programs import programs_to_compile
from sam2_3dmed_jax.runtime.jaxpr_flops import flops
from tests.plan.test_tpu import experiment


def test_the_programs_of_a_prediction_trace_with_abstract_arguments_and_have_flops():
    programs = programs_to_compile(experiment(2), "predict", jax.devices())
    assert [program.name for program in programs] == ["encode 16 slices", "propagate 16 slices"]
    for program in programs:
        assert flops(program.trace(*program.arguments.values()).jaxpr) > 16 * 10**6


def test_the_bank_of_a_planned_prediction_has_the_slots_of_the_memory_selection():
    planned = experiment(2)
    planned = planned.replace(model=replace(planned.model, memory_selection="self-sorting"))
    _, propagate = programs_to_compile(planned, "predict", jax.devices())
    recent = propagate.arguments["bank"].recent
    assert recent.memory.shape[1] == recent.memory_score.shape[1] == 15

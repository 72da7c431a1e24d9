"""Sums of a train step in bfloat16: none is over many values in 16 bits, where it would stop growing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from sam2_3dmed_jax.config import (
    CorrectionConfig,
    DataConfig,
    ExperimentConfig,
    MeshConfig,
    ModelConfig,
    PromptConfig,
    TrainingConfig,
    UNetConfig,
)
from sam2_3dmed_jax.sam2.layers import add_bias, add_scaled
from sam2_3dmed_jax.training.setup import abstract_run
from sam2_3dmed_jax.training.sharding import make_mesh

FEW = 16  # of which a sum in bfloat16 is off by a 64th at most
CLIPS = ExperimentConfig(
    model=ModelConfig("nano", 128, compute_dtype="bfloat16"),
    data=DataConfig(slices=4),
    training=TrainingConfig(batch_size=1),
)
PROMPTS = PromptConfig(
    mask_prompt_probability=0.2, prompted_slices=2, corrections=CorrectionConfig(clicks=2, corrected_slices=1)
)
EXPERIMENTS = {
    "clips": CLIPS,
    "corrections": CLIPS.replace(data=DataConfig(slices=4, prompts=PROMPTS)),
    "unet": CLIPS.replace(
        model=UNetConfig(patch=(16, 32, 32), features=4, blocks=(1, 1, 1), compute_dtype="bfloat16"),
        data=DataConfig(classes=(1,)),
    ),
}


def sums_in_16_bits(program: ClosedJaxpr | Jaxpr) -> list[int]:
    """Return the number of terms of each sum of 16-bit values in a program and in those that it calls."""
    found = []
    for equation in (program.jaxpr if isinstance(program, ClosedJaxpr) else program).eqns:
        if equation.primitive.name in ("reduce_sum", "cumsum"):
            terms = equation.invars[0].aval
            axes = equation.params.get("axes", (equation.params.get("axis"),))
            found += [math.prod(terms.shape[axis] for axis in axes)] if terms.dtype == jnp.bfloat16 else []
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                found += sums_in_16_bits(item) if isinstance(item, ClosedJaxpr | Jaxpr) else []
    return found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_sum_of_a_train_step_is_over_many_values_in_16_bits(name):
    run = abstract_run(EXPERIMENTS[name], make_mesh(MeshConfig(1, 1), jax.devices()[:1]))
    sums = sums_in_16_bits(run.step.trace(run.state, run.frozen, run.batch).jaxpr)
    assert max(sums, default=0) <= FEW


def test_gradients_of_a_bias_and_of_a_scale_in_16_bits_are_those_in_32_bits():
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(0.05, 0.1, (65536, 8)), jnp.float32)
    x = jnp.asarray(rng.normal(1, 0.1, (65536, 8)), jnp.float32)

    def gradients(dtype):
        def total(bias, scale):
            y = add_scaled(x.astype(dtype), add_bias(jnp.zeros(x.shape, dtype), bias), scale)
            return (y.astype(jnp.float32) * weights).sum()

        return jax.jit(jax.grad(total, (0, 1)))(jnp.ones(8), jnp.ones(8))

    for found, expected in zip(gradients(jnp.bfloat16), gradients(jnp.float32), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0.01)

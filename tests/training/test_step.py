"""The train step with accumulation, rematerialisation and averaged weights."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from sam2_3dmed_jax.config import (
    CorrectionConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    PromptConfig,
    SrppConfig,
    TrainingConfig,
)
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.training.setup import set_up
from tests.helpers.quick import ONLY_DECODER, QUICK
from tests.helpers.random_clips import random_batch

CONFIG = ExperimentConfig(
    model=ModelConfig("nano", 64, slice_position=SrppConfig(dim=16, layers=1)),
    data=DataConfig(slices=3),
    training=TrainingConfig(steps=20, batch_size=4, warmup_steps=1, ema=0.5, learning_rate=1e-3),
)


PROMPTS = PromptConfig(
    mask_prompt_probability=0.2, prompted_slices=2, corrections=CorrectionConfig(clicks=2, corrected_slices=1)
)


def two_steps(config, **changes):
    """The states before, between and after two steps, as NumPy arrays, and the metrics."""
    setup = set_up(config.replace(training=replace(config.training, **changes)))
    batches = [jax.device_put(random_batch(config, i), setup.sharding) for i in range(2)]
    step = setup.step.lower(setup.state, setup.frozen, batches[0]).compile(QUICK)
    state, states, logged = setup.state, [jax.device_get(setup.state)], []
    for batch in batches:
        state, metrics = step(state, setup.frozen, batch)
        states.append(jax.device_get(state))
        logged.append({name: float(value) for name, value in metrics.items()})
    return states, logged


@pytest.mark.long  # compiles two train steps for each set of prompts
@pytest.mark.parametrize("prompts", [PromptConfig(), PROMPTS])
def test_accumulation_and_rematerialisation_do_not_change_losses_and_weights(prompts):
    config = CONFIG.replace(data=replace(CONFIG.data, prompts=prompts))
    states, logged = two_steps(config)
    others, again = two_steps(config, accumulation=2, remat_trunk="all", remat_slices="dots")
    for one, two in zip(logged, again, strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6)
    for path, value in states[-1].weights.items():
        np.testing.assert_allclose(others[-1].weights[path], value, atol=2e-5, err_msg=path)


def test_averaged_weights_follow_the_trained_weights():
    config = CONFIG.replace(model=replace(CONFIG.model, srpp=False, bd=False), data=DataConfig(slices=2))
    (before, between, after), _ = two_steps(config, frozen=ONLY_DECODER)
    for path in ("sam_mask_decoder.iou_token", "sam_mask_decoder.output_upscaling.3.kernel"):
        first = 0.1 * before.weights[path] + 0.9 * between.weights[path]  # decay (1 + 0) / (10 + 0)
        np.testing.assert_allclose(between.ema[path], first, atol=1e-7)
        second = 2 / 11 * first + 9 / 11 * after.weights[path]
        np.testing.assert_allclose(after.ema[path], second, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"accumulation": 3}, r"batch_size: 4 is not divisible by 1 devices x 3 parts .*; use a multiple of 3"),
        ({"accumulation": 0}, r"training\.accumulation: 0 is not a number of parts"),
    ],
)
def test_parts_that_do_not_divide_the_batch_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        set_up(CONFIG.replace(training=replace(CONFIG.training, **changes)))

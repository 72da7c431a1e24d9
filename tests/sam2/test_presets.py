"""Presets have the parameter counts of the official checkpoints, and wrong names or sizes are refused."""

import math

import pytest

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.build import abstract_model
from sam2_3dmed_jax.sam2.presets import preset_config

# Tensors and trained parameters of Meta's checkpoints; the random Fourier matrix (256 numbers) is a buffer there.
OFFICIAL = {
    "sam2.1_hiera_tiny": (471, 38962498),
    "sam2.1_hiera_small": (519, 46060354),
    "sam2.1_hiera_base_plus": (615, 80850178),
    "sam2.1_hiera_large": (903, 224446642),
    "sam2_hiera_tiny": (468, 38945986),
    "sam2_hiera_small": (516, 46043842),
    "sam2_hiera_base_plus": (612, 80833666),
    "sam2_hiera_large": (900, 224430130),
}


@pytest.mark.parametrize("preset", OFFICIAL)
def test_a_preset_has_the_tensor_and_parameter_counts_of_the_official_checkpoint(preset):
    _, shapes = abstract_model(ModelConfig(preset, srpp=False, bd=False))
    tensors, numbers = OFFICIAL[preset]
    assert len(shapes) == tensors
    assert sum(math.prod(shape.shape) for shape in shapes.values()) == numbers + 256


def test_nano_has_at_most_a_thirtieth_of_the_parameters_of_tiny():
    _, shapes = abstract_model(ModelConfig("nano", srpp=False, bd=False))
    assert sum(math.prod(shape.shape) for shape in shapes.values()) < OFFICIAL["sam2.1_hiera_tiny"][1] / 30


def test_the_message_about_an_unknown_preset_lists_the_presets():
    with pytest.raises(UserError, match=r"model\.preset.*'tiny'.*sam2\.1_hiera_tiny"):
        preset_config("tiny")


@pytest.mark.parametrize("size", [100, 32, 0, -128])
def test_an_image_size_that_does_not_fit_the_strides_is_refused(size):
    with pytest.raises(UserError, match=r"model\.image_size"):
        preset_config("nano", size)

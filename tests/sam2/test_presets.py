"""The official architectures have the official parameters."""

import math

import pytest

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.sam2_3dmed import abstract_model
from sam2_3dmed_jax.sam2.presets import preset_config

# Tensors and trained numbers of Meta's checkpoints; the random Fourier matrix (256 numbers) is a buffer there.
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
def test_a_preset_has_as_many_tensors_and_numbers_as_the_official_checkpoint(preset):
    _, shapes = abstract_model(ModelConfig(preset, srpp=False, bd=False))
    tensors, numbers = OFFICIAL[preset]
    assert len(shapes) == tensors
    assert sum(math.prod(shape.shape) for shape in shapes.values()) == numbers + 256


def test_nano_is_a_thirtieth_of_tiny_at_most():
    _, shapes = abstract_model(ModelConfig("nano", srpp=False, bd=False))
    assert sum(math.prod(shape.shape) for shape in shapes.values()) < OFFICIAL["sam2.1_hiera_tiny"][1] / 30


def test_an_unknown_preset_is_refused_with_the_choices():
    with pytest.raises(UserError, match=r"model\.preset.*'tiny'.*sam2\.1_hiera_tiny"):
        preset_config("tiny")


@pytest.mark.parametrize("size", [100, 32, 0, -128])
def test_a_slice_size_that_does_not_fit_the_strides_is_refused(size):
    with pytest.raises(UserError, match=r"model\.image_size"):
        preset_config("nano", size)

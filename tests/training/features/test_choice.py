"""The choice between cached features and the encoder, and the weights on the devices."""

import json
from dataclasses import replace

import pytest

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, SrppConfig, TrainingConfig
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.build import abstract_model
from sam2_3dmed_jax.training.features.choice import reason_not_used, trains_from_features
from sam2_3dmed_jax.training.parameter_groups import FROZEN_PRETRAINED
from sam2_3dmed_jax.training.setup import set_up

CONFIG = ExperimentConfig(
    model=ModelConfig("nano", 64, slice_position=SrppConfig(dim=16, layers=1)),
    data=DataConfig(slices=2, features="features", augmentation=NO_AUGMENTATION),
    training=TrainingConfig(batch_size=2, frozen=FROZEN_PRETRAINED),
)


def augmented(**changes):
    return replace(CONFIG.data, augmentation=replace(NO_AUGMENTATION, **changes))


def encoders(paths):
    return {path for path in paths if path.startswith(("image_encoder.", "sam_mask_decoder.conv_s"))}


def test_a_run_from_features_keeps_its_encoder_on_the_host():
    setup = set_up(CONFIG)
    paths = set(abstract_model(CONFIG.model)[1])
    assert setup.encoder is not None and set(setup.encoder.weights) == encoders(paths)
    assert not encoders({*setup.frozen, *setup.state.weights})
    assert set(setup.weights(setup.state)) == paths


@pytest.mark.parametrize("name", ["flip_probability", "rotation", "scaling", "shift", "intensity", "gamma", "noise"])
def test_augmentation_of_slices_falls_back_to_the_encoder_with_a_reason(name):
    config = CONFIG.replace(data=augmented(**{name: 0.25}))
    assert trains_from_features(CONFIG) and not trains_from_features(config)
    assert f"(data.augmentation.{name} 0.25)" in reason_not_used(config) and "\n" not in reason_not_used(config)


def test_an_augmented_run_keeps_its_encoder_on_the_devices():
    setup = set_up(CONFIG.replace(data=augmented(noise=0.1)))
    assert setup.encoder is None and encoders(setup.frozen)


@pytest.mark.parametrize("frozen", [(), FROZEN_PRETRAINED[:1], (r"^image_encoder\.trunk",)], ids=json.dumps)
def test_an_encoder_that_trains_is_refused_with_and_without_augmentation(frozen):
    for noise in (0.0, 0.1):
        config = CONFIG.replace(data=augmented(noise=noise), training=replace(CONFIG.training, frozen=frozen))
        with pytest.raises(UserError, match=r"^data\.features: the image encoder trains \((image|sam).*freeze"):
            set_up(config)

"""Slice context of a volume, for models that add it to the features and models that do not."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax import load_model, save_model
from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.inference.feature_store import FeatureStore
from sam2_3dmed_jax.inference.host_arrays import HostArrays
from sam2_3dmed_jax.model.build import random_weights
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, assemble
from sam2_3dmed_jax.sam2.parameters import split


@pytest.mark.parametrize("to_mask", [True, False])
def test_the_slice_context_is_added_only_if_the_checkpoint_has_to_mask(to_mask, tmp_path):
    config = ModelConfig("nano", 64, bd=False)
    config = replace(config, slice_position=replace(config.slice_position, dim=16, layers=1, to_mask=to_mask))
    weights = random_weights(config, 0)
    if to_mask:
        kernel = weights["slice_position.to_features.kernel"]
        weights["slice_position.to_features.kernel"] = jnp.ones_like(kernel)
    save_model(assemble(weights, CheckpointInfo(config)), tmp_path / "checkpoint")
    model = load_model(tmp_path / "checkpoint")
    slices = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    store = FeatureStore(*split(model), model, slices, HostArrays())
    _, context = store.gather([0, 1])
    assert context.shape == (2, model.config.d_model)
    assert (np.abs(context).max() > 0) == to_mask and (store.context is not None) == to_mask

    (encoded,) = store.encoded()
    restored = FeatureStore(*split(model), model, slices, HostArrays())
    restored.restore(encoded)
    features, again = restored.gather([1, 0])
    np.testing.assert_array_equal(again, context[::-1])
    for one, other in zip(features, store.gather([1, 0])[0], strict=True):
        np.testing.assert_array_equal(one, other)

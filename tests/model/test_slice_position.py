"""The slice context by itself: what it is told of order, and how it runs over a volume."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sam2_3dmed_jax.config import SrppConfig
from sam2_3dmed_jax.model.slice_position import SlicePosition
from sam2_3dmed_jax.sam2.initializers import initial_weights
from sam2_3dmed_jax.sam2.parameters import merge

D, DIM = 4, 16


def module(told_order: bool) -> SlicePosition:
    config = SrppConfig(dim=DIM, layers=1, window=D, told_order=told_order)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: SlicePosition(config, 8, dtype=jnp.float32)))
    shapes = {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
    weights = initial_weights(shapes, 0)
    if told_order:
        weights["pos_embed"] *= 50
    return merge(graphdef, weights)


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, D, DIM)).astype(np.float32)


def context(module: SlicePosition, embeddings: np.ndarray, index: list[int], valid: list[bool] | None = None):
    there = np.array([valid or [True] * D])
    return np.asarray(module.context(embeddings, there, np.array([index], np.float32)))[0]


@pytest.mark.parametrize("told_order", [True, False])
def test_the_index_is_looked_at_only_where_order_is_told(told_order, embeddings):
    one, other = (context(module(told_order), embeddings, index) for index in ([4, 5, 6, 7], [7, 4, 6, 5]))
    assert (np.abs(one - other).max() > 1e-3) == told_order


def test_order_is_told_as_a_place_from_inferior_to_superior_whatever_the_stride_and_the_direction(embeddings):
    told = module(True)
    upwards = context(told, embeddings, [4, 5, 6, 7])
    np.testing.assert_array_equal(upwards, context(told, embeddings, [10, 13, 16, 19]))
    downwards = context(told, embeddings[:, ::-1], [7, 6, 5, 4])
    np.testing.assert_allclose(downwards[::-1], upwards, atol=1e-5)
    # Padding below the first slice, as of a walk that has left the volume, counts for nothing.
    cut = [True, True, True, False]
    np.testing.assert_array_equal(
        context(told, embeddings, [0, 1, 2, -1], cut)[:3], context(told, embeddings, [4, 5, 6, 7], cut)[:3]
    )


@pytest.mark.parametrize("told_order", [True, False])
def test_a_volume_of_one_window_has_the_context_of_that_clip(told_order, embeddings):
    made = module(told_order)
    padded = np.concatenate([embeddings[0], np.zeros((4, DIM), np.float32)])
    volume = np.asarray(made.volume_context(padded, jnp.int32(D)))[:D]
    np.testing.assert_allclose(volume, context(made, embeddings, [0, 1, 2, 3]), atol=1e-5)

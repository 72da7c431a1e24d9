"""The slice context: what it knows about the order of slices, and its windows over a volume."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sam2_3dmed_jax.config import SrppConfig
from sam2_3dmed_jax.model.slice_position import SlicePosition
from sam2_3dmed_jax.sam2.initializers import initial_weights
from sam2_3dmed_jax.sam2.parameters import merge

D, DIM = 4, 16


def module(order_embedding: bool) -> SlicePosition:
    config = SrppConfig(dim=DIM, layers=1, window=D, order_embedding=order_embedding)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: SlicePosition(config, 8, dtype=jnp.float32)))
    shapes = {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
    weights = initial_weights(shapes, 0)
    if order_embedding:
        weights["pos_embed"] *= 50
    return merge(graphdef, weights)


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, D, DIM)).astype(np.float32)


def context(module: SlicePosition, embeddings: np.ndarray, index: list[int], valid: list[bool] | None = None):
    mask = np.array([valid or [True] * D])
    return np.asarray(module.context(embeddings, mask, np.array([index], np.float32)))[0]


@pytest.mark.parametrize("order_embedding", [True, False])
def test_the_slice_index_matters_only_with_an_order_embedding(order_embedding, embeddings):
    ascending, shuffled = (
        context(module(order_embedding), embeddings, index) for index in ([4, 5, 6, 7], [7, 4, 6, 5])
    )
    assert (np.abs(ascending - shuffled).max() > 1e-3) == order_embedding


def test_the_order_embedding_ranks_slices_upwards_for_any_stride_and_direction(embeddings):
    ordered = module(True)
    upwards = context(ordered, embeddings, [4, 5, 6, 7])
    np.testing.assert_array_equal(upwards, context(ordered, embeddings, [10, 13, 16, 19]))
    downwards = context(ordered, embeddings[:, ::-1], [7, 6, 5, 4])
    np.testing.assert_allclose(downwards[::-1], upwards, atol=1e-5)
    # Padding below the first slice, as when propagation has left the volume, has no effect.
    cut = [True, True, True, False]
    np.testing.assert_array_equal(
        context(ordered, embeddings, [0, 1, 2, -1], cut)[:3], context(ordered, embeddings, [4, 5, 6, 7], cut)[:3]
    )


@pytest.mark.parametrize("order_embedding", [True, False])
def test_a_volume_of_one_window_has_the_context_of_the_clip(order_embedding, embeddings):
    slice_position = module(order_embedding)
    padded = np.concatenate([embeddings[0], np.zeros((4, DIM), np.float32)])
    volume = np.asarray(slice_position.volume_context(padded, jnp.int32(D)))[:D]
    np.testing.assert_allclose(volume, context(slice_position, embeddings, [0, 1, 2, 3]), atol=1e-5)

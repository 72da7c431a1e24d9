"""Forms of layers that TPUs compute: the values and gradients of the other platforms' forms, on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from sam2_3dmed_jax.config import HieraConfig
from sam2_3dmed_jax.sam2.attention import attend_in_windows
from sam2_3dmed_jax.sam2.hiera import Hiera
from sam2_3dmed_jax.sam2.layers import Linear, in_order, max_pool_2x2
from sam2_3dmed_jax.sam2.local_rows import on_local_rows

# Windows of 4 divide a map of 16 x 16 tokens and are pooled, those of 3 reach beyond the maps of stages 3 and 4.
CONFIG = HieraConfig(
    embed_dim=12, num_heads=1, stages=(1, 1, 2, 1), global_att_blocks=(3,), window_spec=(4, 2, 3, 3),
    pos_embed_size=(4, 4),
)  # fmt: skip


@pytest.fixture
def on_tpu(monkeypatch):
    """Return a function that calls another one with the forms of TPUs; Pallas kernels are not among those tested."""

    def choose(*arguments, default, tpu=None, **others):
        return (tpu or default)(*arguments)

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(lax, "platform_dependent", choose)
            return function(*arguments)

    return call


def values(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16)


def assert_close(found, expected, tolerance=0.02):
    """Compare by the size of the whole array: single values in bfloat16 are wrong by a 256th."""
    found, expected = (np.asarray(x, np.float32) for x in (found, expected))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_the_pooling_of_a_tpu_is_the_same_with_its_gradient(on_tpu):
    x = values(0, 2, 9, 8, 6)
    np.testing.assert_array_equal(on_tpu(max_pool_2x2, x), max_pool_2x2(x))
    distinct = jnp.asarray(np.random.default_rng(1).permutation(256).reshape(1, 16, 16, 1), jnp.bfloat16)

    def gradient(x):
        return jax.grad(lambda x: jnp.square(max_pool_2x2(x).astype(jnp.float32)).sum())(x)

    np.testing.assert_array_equal(on_tpu(gradient, distinct), gradient(distinct))


@pytest.mark.parametrize("window", [0, 4])
def test_the_parts_of_a_projection_are_the_same(on_tpu, window):
    layer = Linear(8, 12, dtype=jnp.bfloat16)
    layer.kernel.set_value(values(0, 8, 12).astype(jnp.float32))
    layer.bias.set_value(values(1, 12).astype(jnp.float32))
    x = values(2, 2, 5, 7, 8)
    for found, expected in zip(on_tpu(layer.parts, x, 3, window), layer.parts(x, 3, window), strict=True):
        assert_close(found, expected)


def test_attention_head_by_head_is_the_same(on_tpu):
    q, k, v = values(0, 5, 2, 2, 12), values(1, 5, 4, 4, 12), values(2, 5, 4, 4, 12)
    assert_close(on_tpu(attend_in_windows, q, k, v, 3), attend_in_windows(q, k, v, 3))


@pytest.mark.slow
def test_features_and_gradients_of_the_trunk_are_as_exact(on_tpu):
    """Neither form is right to the last bit, so the errors of both are compared: with the trunk in float32."""
    leaves, tree = jax.tree.flatten(nnx.state(Hiera(CONFIG, dtype=jnp.float32)))
    weights = tree.unflatten([0.3 * values(seed, *x.shape).astype(jnp.float32) for seed, x in enumerate(leaves)])
    images = values(99, 2, 64, 64, 3)

    def features_and_gradients(dtype):
        graphdef = nnx.graphdef(Hiera(CONFIG, dtype=dtype))

        def total(weights):
            features = [x.astype(jnp.float32) for x in nnx.merge(graphdef, weights)(images)]
            return sum(jnp.square(x).mean() for x in features), features

        gradients, features = jax.jit(jax.grad(total, has_aux=True))(weights)
        return jax.tree.leaves((features, gradients))

    exact = features_and_gradients(jnp.float32)
    others, tpus = features_and_gradients(jnp.bfloat16), on_tpu(features_and_gradients, jnp.bfloat16)
    assert any((one != other).any() for one, other in zip(others, tpus, strict=True))

    def errors(found):
        pairs = zip(found, exact, strict=True)
        return np.array([jnp.linalg.norm(x - truth) / (jnp.linalg.norm(truth) + 1e-6) for x, truth in pairs])

    assert errors(tpus).mean() <= 1.3 * errors(others).mean() < 0.1
    assert errors(tpus).max() <= 2 * errors(others).max()


def test_in_order_changes_no_value(on_tpu):
    x = values(0, 2, 3, 4)
    np.testing.assert_array_equal(on_tpu(in_order, x), x)


def test_rows_are_split_over_the_devices_that_divide_them():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    seen = []

    @on_local_rows
    def double(x):
        seen.append(jax.typeof(x).sharding.mesh.auto_axes)
        return 2 * x

    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(jax.jit(double)(jnp.ones((4, 2))), 2 * jnp.ones((4, 2)))
    assert seen[-1] == ()

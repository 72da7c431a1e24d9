"""Objects of one slice share the computation before their memories, with the same results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax.runtime.jaxpr_flops import flops
from sam2_3dmed_jax.sam2.memory_attention import MemoryAttention, MemoryTokens
from sam2_3dmed_jax.sam2.memory_encoder import MemoryEncoder
from sam2_3dmed_jax.sam2.parameters import merge, split
from sam2_3dmed_jax.sam2.presets import preset_config

SLICES, OBJECTS, SIDE = 2, 3, 4
CONFIG = preset_config("nano", 16 * SIDE)


def rows(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


def with_weights(module):
    graphdef, weights = split(module)
    normal = np.random.default_rng(0).normal
    return merge(graphdef, {path: jnp.asarray(0.1 * normal(size=w.shape), w.dtype) for path, w in weights.items()})


def attend(embedding):
    k, m = SLICES * OBJECTS, 3 * SIDE**2
    valid = jnp.arange(m)[None, :] < jnp.arange(1, k + 1)[:, None] * SIDE  # each row has different memories
    memory = MemoryTokens(rows(k, m, CONFIG.mem_dim), rows(k, m, CONFIG.mem_dim) / 2, valid, 0)
    return with_weights(MemoryAttention(CONFIG, dtype=jnp.float32))(embedding, memory)


def remember(embedding):
    masks = 10 * rows(SLICES * OBJECTS, 16 * SIDE, 16 * SIDE)
    return with_weights(MemoryEncoder(CONFIG, dtype=jnp.float32))(embedding, masks)


@pytest.mark.parametrize("step", [attend, remember])
def test_objects_of_a_slice_have_the_same_results_as_alone_with_fewer_flops(step):
    embedding = rows(SLICES, SIDE, SIDE, CONFIG.d_model)
    repeated = jnp.repeat(embedding, OBJECTS, axis=0)
    shared, alone = step(embedding), step(repeated)
    assert shared.shape[0] == SLICES * OBJECTS and float(jnp.abs(shared[0] - shared[1]).max()) > 1e-2
    np.testing.assert_allclose(shared, alone, atol=2e-5)  # float32 sums of numbers of order one, in a different order
    assert flops(jax.make_jaxpr(step)(embedding)) < flops(jax.make_jaxpr(step)(repeated))

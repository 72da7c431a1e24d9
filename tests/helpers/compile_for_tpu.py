"""Compiles memory attention at 1024 px for TPUs that are not there; prints what it sees as JSON."""

import json
import math
import os
import re

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no metadata server is asked what machine this is
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # two processes cannot compete for a chip, because none exists

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.sam2.memory_attention import MemoryAttention, MemoryTokens

SIDE, MEMORIES, POINTERS = 64, 7, 64  # at 1024 px: 16 pointers of 4 tokens each
N, M = SIDE**2, MEMORIES * SIDE**2 + POINTERS
CONFIG = Sam2Config(memory_attention_layers=1)


def describe(devices: np.ndarray, training: bool) -> dict[str, float]:
    """Compile two slices in a checkpointed scan, with one row per device, with gradients or without."""
    rows = devices.size
    mesh = Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))
    graphdef, weights = nnx.split(nnx.eval_shape(lambda: MemoryAttention(CONFIG, dtype=jnp.bfloat16)))

    def loss(weights, embedding, tokens, position, valid):
        @jax.checkpoint
        def step(embedding, _):
            memory = MemoryTokens(tokens, position, valid, POINTERS)
            return nnx.merge(graphdef, weights)(embedding, memory), None

        out, _ = jax.lax.scan(step, embedding, length=2)
        return jnp.square(out.astype(jnp.float32)).sum()

    def array(sharding, dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, sharding))

    weights = jax.tree.map(lambda x: array(P(), x.dtype, *x.shape), weights)
    by_row = P(("data", "fsdp"))
    compiled = (
        jax.jit(jax.grad(loss, (0, 1, 2)) if training else loss)
        .lower(
            weights,
            array(by_row, jnp.bfloat16, rows, SIDE, SIDE, CONFIG.d_model),
            array(by_row, jnp.bfloat16, rows, M, CONFIG.mem_dim),
            array(by_row, jnp.bfloat16, rows, M, CONFIG.mem_dim),
            array(by_row, bool, rows, M),
        )
        .compile()
    )
    text = compiled.as_text()
    shapes = re.findall(r"\b(?:f32|bf16|s32|pred)\[([\d,]+)\]", text)
    return {
        "forward kernels": len(re.findall(r"%flash_attention_forward\S* = .* custom-call", text)),
        "backward kernels": len(re.findall(r"%flash_attention_backward\S* = .* custom-call", text)),
        "gathers": len(re.findall(r" all-gather(?:-start)?\(", text)),
        "largest array": max(math.prod(map(int, shape.split(","))) for shape in shapes),
        "scores": N * M,
        "flops": compiled.cost_analysis()["flops"],
        # A query and a key multiply 256 channels, and 64 of a memory's values or 256 of the slice's own: two products
        # forward, which the checkpoint repeats, and five backward. The body of a loop is counted once.
        "flops of attention": 2 * N * ((M * (2 * 320 + 896) + N * (2 * 512 + 1280)) if training else M * 320 + N * 512),
    }


chips = np.array(topologies.get_topology_desc("v5e:2x2", "tpu").devices).reshape(2, 2)
print(json.dumps({"prediction": describe(chips[:1, :1], False), "training": describe(chips, True)}))

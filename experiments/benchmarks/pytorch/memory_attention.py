"""Memory attention of one slice to a full bank: 7 memories and 16 object pointers of 4 tokens each.

python -m experiments.benchmarks.pytorch.memory_attention [--size 1024] [--dtype bfloat16]
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.pytorch.references import build, device, load, precision
from experiments.benchmarks.pytorch.side_by_side import SEED, Side, Work, counted, main
from tests.parity import compare
from tests.parity.generated import uniform

MEMORIES, POINTERS = 7, 16 * 4
# Float32: relative to the largest magnitude. Bfloat16: relative to the norm of all numbers, because single numbers
# differ by much after four layers of a sharp softmax with 8 bits of mantissa (measured: 0.13 of the largest).
TOLERANCE = {"float32": compare.FEATURES, "bfloat16": 0.1}


def inputs(size: int, channels: int = 256, memory_channels: int = 64) -> dict[str, np.ndarray]:
    """Return features, memories with pointers, and their position encodings, of mean 0 and variance 1."""
    side = size // 16
    tokens = MEMORIES * side * side + POINTERS
    shapes = {"embedding": (1, side, side, channels), "memory": (1, tokens, memory_channels)}
    shapes["position"] = shapes["memory"]
    return {name: uniform(f"benchmark/{name}", shape, SEED) for name, shape in shapes.items()}


def theirs(options: argparse.Namespace, folder: Path) -> Side:
    import torch

    from sam2_3dmed_jax.sam2.position_encoding import sine_position
    from tests.parity.axes import tokens_first

    model = build(options, folder, options.size)
    tensors = {name: torch.from_numpy(value).to(device(options)) for name, value in inputs(options.size).items()}
    side = options.size // 16
    curr = tokens_first(tensors["embedding"])
    curr_pos = tokens_first(torch.from_numpy(sine_position(side, side, 256))[None].to(device(options)))
    memory, position = tensors["memory"].transpose(0, 1), tensors["position"].transpose(0, 1)

    def run() -> Any:
        with torch.inference_mode(), precision(options):
            if options.reference == "meta":
                return model.memory_attention(curr, memory, curr_pos, position, POINTERS)
            return model.memory_attention(
                current_vision_features=curr,
                current_vision_position_embeddings=curr_pos,
                memory=memory,
                memory_posision_embeddings=position,
                num_object_pointer_tokens=POINTERS,
            )

    return Side(run, counted(run), lambda out: out.float().cpu().numpy())


def ours(options: argparse.Namespace, folder: Path) -> Side:
    import jax
    import jax.numpy as jnp

    from sam2_3dmed_jax.runtime.jaxpr_flops import flops
    from sam2_3dmed_jax.sam2.memory_attention import MemoryTokens
    from sam2_3dmed_jax.sam2.parameters import merge, split

    model = load(options, folder, options.size)
    graphdef, weights = split(model)
    arrays = inputs(options.size, model.config.d_model, model.config.mem_dim)
    embedding = jnp.asarray(arrays["embedding"], options.dtype)
    tokens, position = jnp.asarray(arrays["memory"], options.dtype), jnp.asarray(arrays["position"])

    @jax.jit
    def attend(weights, embedding, tokens, position):
        memory = MemoryTokens(tokens, position, jnp.ones(tokens.shape[:2], bool), POINTERS)
        return merge(graphdef, weights).condition_on_memory(embedding, memory)

    def run() -> Any:
        return attend(weights, embedding, tokens, position).block_until_ready()

    return Side(run, flops(jax.make_jaxpr(attend)(weights, embedding, tokens, position)), np.asarray)


def check(found: np.ndarray, reference: np.ndarray, options: argparse.Namespace) -> str:
    found = found.astype(np.float32)
    # The reference is tokens-first; transformers adds an axis of objects.
    reference = reference.reshape(-1, 1, 256).transpose(1, 0, 2).reshape(found.shape)
    if options.dtype == "float32":
        error = compare.relative_error(found, reference)
    else:
        error = float(np.linalg.norm(found - reference) / np.linalg.norm(reference))
    assert error <= TOLERANCE[options.dtype], error
    return f"features within {error:.0e}"


def name(options: argparse.Namespace) -> str:
    return f"memory attention, {MEMORIES} memories + 16 pointers, {options.size} px"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="S, pixels; default: %(default)s")
    sys.exit(main(Work(name, {"float32": 0.45, "bfloat16": 0.5}, ours, theirs, check), parser))

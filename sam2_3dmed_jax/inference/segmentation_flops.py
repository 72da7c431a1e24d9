"""FLOPs of segmenting a volume from prompts, from the jaxprs of the programs that a session runs.

Each slice is encoded once; each object is decoded on its prompted slices, as from one click, and walked once over the
others (twice between its prompts in the order 'independent'). What is computed beside that, padding to blocks of
slices and to a power of two of prompts, is left out, so that the figure is one of the model and not of a machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache

import jax
import jax.numpy as jnp

from sam2_3dmed_jax.inference.abstract_arguments import block_arguments
from sam2_3dmed_jax.inference.automatic import AutomaticPredictor, patch_logits
from sam2_3dmed_jax.inference.compiled_steps import prompt_slices, walk_block
from sam2_3dmed_jax.inference.feature_store import BLOCK, encode_block, slice_context, slice_position_of
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.inference.sliding_window import window_starts
from sam2_3dmed_jax.prompts.prompt import power_of_two
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.runtime.jaxpr_flops import flops
from sam2_3dmed_jax.sam2.prompt_encoder import no_prompts
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.resample import regrid


class SegmentationFlops:
    """FLOPs of sessions of one predictor; its programs are traced once, and nothing is compiled."""

    def __init__(self, predictor: VolumePredictor) -> None:
        """Take a predictor; a program is traced when it is first asked for."""
        self._predictor = predictor
        self._weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), predictor.weights)
        self._of_slice = cache(self._trace)

    def __call__(self, sessions: Iterable[tuple[int, Sequence[VoxelPrompt]]]) -> int:
        """Of all sessions, each with its number of slices and the prompts of its objects; a multiply-add is two."""
        return sum(self._session(depth, prompts) for depth, prompts in sessions if prompts)

    def _session(self, depth: int, prompts: Sequence[VoxelPrompt]) -> int:
        slices: dict[int, set[int]] = {}
        for prompt in prompts:
            slices.setdefault(prompt.object_id, set()).add(prompt.slice)
        encode, prompted, walk = self._of_slice(power_of_two(max(map(len, slices.values()))))
        total = depth * encode
        for own in slices.values():
            between = max(own) - min(own) + 1 - len(own) if self._predictor.order == "independent" else 0
            total += len(own) * prompted + (depth - len(own) + between) * walk
        return total

    def _trace(self, room: int) -> tuple[int, int, int]:
        """Of a slice: encoded, prompted, and walked with memories of `room` prompted slices."""
        predictor, weights = self._predictor, self._weights
        graphdef, config = predictor.graphdef, predictor.model.config
        dtype = jnp.dtype(config.compute_dtype)
        images, walked = block_arguments(graphdef, weights, config, 1, room, dtype)
        encode = flops(encode_block.trace(graphdef, weights, images).jaxpr) // images.shape[0]
        if position := slice_position_of(predictor.model):
            embedded = jax.ShapeDtypeStruct((BLOCK, position.config.dim), jnp.float32)
            encode += flops(slice_context.trace(graphdef, weights, embedded, jnp.int32(BLOCK)).jaxpr) // BLOCK
        steps = walked[1]
        features, context = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (steps.features, steps.context)
        )
        click = jax.eval_shape(lambda: no_prompts(1))
        prompted = prompt_slices.trace(graphdef, weights, features, context, click, predictor.postprocessing)
        walk = walk_block.trace(graphdef, weights, *walked)
        return encode, flops(prompted.jaxpr), flops(walk.jaxpr) // BLOCK


def flops_of_windows(predictor: AutomaticPredictor, volume: Volume) -> int:
    """Of a U-Net that slides over a volume at its own spacing."""
    patch = predictor.model.config.patch
    spacing, name = predictor.model.config.spacing, volume.grid.source or "the volume"
    shape = regrid(volume.array.shape, volume.canonical_affine, spacing, name).shape
    windows = math.prod(len(window_starts(max(n, p), p)) for n, p in zip(shape, patch, strict=True))
    weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), predictor.weights)
    seen = jax.ShapeDtypeStruct((1, *patch), jnp.float32)
    return windows * flops(patch_logits.trace(predictor.graphdef, weights, seen).jaxpr)
